"""Stand-ins for two packages that T5X imports and that neither training nor decoding needs.

    python -m lmsi_jax.interop.t5x_stubs train --gin_file=...    # T5X's own t5x/train.py

runs one of T5X's commands (train, infer, eval) with them in place, where they are needed, and with
our packaged gin files on its search path.
"""

import importlib.util
import runpy
import sys
import types

from lmsi_jax.errors import LmsiError

_COMMANDS = ("train", "infer", "eval")


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
    # Importing runs the package's own code, which may raise anything; it would stop T5X too.
    except Exception:
        for loaded in [m for m in sys.modules if m.split(".")[0] == name.split(".")[0]]:
            del sys.modules[loaded]
        return True
    return False


def missing() -> str | None:
    """Returns why T5X cannot be imported, None where it can; installs the stand-ins."""
    for name in ("t5x", "tensorboard"):  # T5X needs tensorboard and does not declare it
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed; pip install -e '.[t5x]' in the checkout"
    install()
    return None


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


def main(words: list[str]) -> None:
    """Runs a command of T5X's as if it were called by itself.

    Raises:
      LmsiError: no such command, or T5X is not installed.
    """
    if not words or words[0] not in _COMMANDS:
        raise LmsiError(f"name a command of T5X's: {', '.join(_COMMANDS)}")
    reason = missing()
    if reason:
        raise LmsiError(reason)
    packaged = importlib.resources.files("lmsi_jax.gin_configs")
    paths = [word for word in words[1:] if word.startswith("--gin_search_paths=")]
    rest = [word for word in words[1:] if word not in paths]
    found = ",".join([*(path.partition("=")[2] for path in paths), str(packaged), "."])
    sys.argv = [f"t5x.{words[0]}", f"--gin_search_paths={found}", *rest]
    runpy.run_module(f"t5x.{words[0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except LmsiError as error:
        sys.exit(f"{error}")
