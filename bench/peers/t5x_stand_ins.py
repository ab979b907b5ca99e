"""Stand-ins for two packages that T5X imports and that its decode loop does not need."""

import importlib
import sys
import types


def _module(name: str, **contents: object) -> types.ModuleType:
    """A module object registered under its name, and in its parent."""
    made = types.ModuleType(name)
    vars(made).update(contents)
    sys.modules[name] = made
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, made)
    return made


def _fails(name: str) -> bool:
    """Whether a package is absent or does not import with the installed JAX."""
    try:
        importlib.import_module(name)
    except Exception:  # whatever stops it would stop T5X too
        for loaded in [m for m in sys.modules if m.split(".")[0] == name.split(".")[0]]:
            del sys.modules[loaded]
        return True
    return False


def install() -> None:
    """Puts stand-ins for what cannot be imported into `sys.modules`."""
    # airio is on GitHub alone; T5X checks arguments against its classes.
    if _fails("airio.core"):
        names = ("DatasetProviderBase", "Task", "Mixture", "AirIODatasetIterator")
        _module("airio")
        _module("airio.core", **{name: type(name, (), {}) for name in names})
    # jestimator's release does not import with a current JAX; it has the Amos optimizer only.
    if _fails("jestimator.amos"):
        _module("jestimator")
        state = type("ScaleByAmosState", (), {})
        _module("jestimator.amos", ScaleByAmosState=state, amos=lambda *args, **kwargs: None)
        _module("jestimator.amos_helper", state_partition_rule=lambda *args, **kwargs: None)
