"""Load objects of a user's Python code, which settings name as "module:object".

"my_task:TASK" is an installed module; "/home/me/my_task:TASK" is the file my_task.py, or a package,
of that folder. `gin_loader` writes the second form for modules beside a gin file. Such a module is
imported with its folder in front of sys.path, and nothing of it stays in sys.path or sys.modules:
two folders may have modules of one name. So a module imports what it needs when it is imported, not
within its functions.
"""

import contextlib
import hashlib
import importlib
import inspect
import os
import pathlib
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

from lmsi_jax.errors import LmsiError

_LOCK = threading.RLock()


class _Loaded(NamedTuple):
    """A module, and the source files that it consists of."""

    module: types.ModuleType
    files: tuple[pathlib.Path, ...]
    digest: str


_LOADED: dict[str, _Loaded] = {}


def load(name: str, setting: str) -> Any:
    """Returns an object of a module; a module whose source has changed is imported anew.

    Args:
      name: "module:object", or "/folder/module:object"; the object may be "Class.attribute".
      setting: the setting that names it, for messages.

    Raises:
      LmsiError: there is no such module or object, or importing the module fails.
    """
    place, attribute = _split(name, setting)
    value: Any = _module(place, setting).module
    for part in attribute.split("."):
        if not hasattr(value, part):
            names = [one for one in dir(value) if not one.startswith("_")]
            raise LmsiError(
                f"{setting}: the module {place} has no {attribute!r}; it has "
                f"{', '.join(names) or 'no names'}"
            )
        value = getattr(value, part)
    return value


def load_function(name: str, setting: str, arguments: int) -> Any:
    """Returns a function of a module, as `load` does.

    Args:
      name: as of `load`.
      setting: as of `load`.
      arguments: how many it is called with.

    Raises:
      LmsiError: as `load`, or the object cannot be called so.
    """
    function = load(name, setting)
    check_function(function, f"{setting}: {name}", arguments)
    return function


def check_function(function: Any, name: str, arguments: int) -> None:
    """Raises LmsiError if an object cannot be called with so many arguments."""
    if not callable(function):
        raise LmsiError(f"{name} is no function but {type(function).__name__}")
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # some functions in C do not tell
        return
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        raise LmsiError(
            f"{name} takes {signature}; it is called with {arguments} arguments"
        ) from None


def fingerprint(name: str, setting: str) -> str:
    """Returns a digest of an object's code: of its module, and of all that it imports beside it.

    An attribute `fingerprint` of the object, a text, takes the code's place.

    Raises:
      LmsiError: as `load`.
    """
    declared = getattr(load(name, setting), "fingerprint", None)
    if isinstance(declared, str):
        return declared
    place, attribute = _split(name, setting)
    text = f"{attribute} {_module(place, setting).digest}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _split(name: str, setting: str) -> tuple[str, str]:
    place, colon, attribute = name.rpartition(":")
    module = place.rpartition("/")[2]
    parts = [*module.split("."), *attribute.split(".")]
    if not (colon and all(part.isidentifier() for part in parts)):
        raise LmsiError(f"{setting} = {name!r}; write 'module:object', as in 'my_task:TASK'")
    return os.path.expanduser(place), attribute


def _module(place: str, setting: str) -> _Loaded:
    with _LOCK:
        known = _LOADED.get(place)
        if known is None or known.digest != _digest(known.files):
            folder, slash, module = place.rpartition("/")
            imported = _import(module, folder if slash else None, place, setting)
            files = tuple(sorted({pathlib.Path(one.__file__) for one in imported if one.__file__}))
            _LOADED[place] = _Loaded(imported[0], files, _digest(files))
        return _LOADED[place]


def _digest(files: tuple[pathlib.Path, ...]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0")
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


def _import(module: str, folder: str | None, place: str, setting: str) -> list[types.ModuleType]:
    """Imports a module; returns it, and the modules beside it that it has imported."""
    with _first_in_path(folder, module.partition(".")[0]) as imported:
        try:
            imported.insert(0, importlib.import_module(module))
        except ModuleNotFoundError as error:
            if f"{module}.".startswith(f"{error.name}."):
                where = f"in the folder {folder}" if folder else "beside the gin file or installed"
                raise LmsiError(
                    f"{setting}: there is no module {module!r} {where}; check its name, or install "
                    "it"
                ) from None
            raise LmsiError(
                f"{setting}: the module {place} imports {error.name!r}, which is not installed"
            ) from error
        except Exception as error:
            last = inspect.trace()[-1]
            at = (last.filename, last.lineno)
            if isinstance(error, SyntaxError) and error.filename:
                at = (error.filename, error.lineno or 0)
            raise LmsiError(
                f"{setting}: importing the module {place} fails at {at[0]}, line {at[1]}: "
                f"{type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
    return imported


@contextlib.contextmanager
def _first_in_path(folder: str | None, top: str) -> Iterator[list[types.ModuleType]]:
    """Has modules of a folder found first; afterwards they are in the list and nowhere else."""
    imported: list[types.ModuleType] = []
    if folder is None:
        yield imported
        return
    root, before = pathlib.Path(folder).resolve(), {*sys.modules}
    hidden = {
        name: sys.modules.pop(name)
        for name in before
        if name.partition(".")[0] == top and top not in sys.stdlib_module_names
    }
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    # Bytecode of a file that changes twice in a second would be taken for current.
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield imported
    finally:
        sys.dont_write_bytecode = writes
        sys.path.remove(str(root))
        for name in [*sys.modules]:
            if (name not in before or name in hidden) and _is_beside(name, root):
                imported.append(sys.modules.pop(name))
        sys.modules.update(hidden)


def _is_beside(name: str, root: pathlib.Path) -> bool:
    """Returns True if a module is a file of a folder, and none of an installed package."""
    file = getattr(sys.modules[name], "__file__", None)
    if file is None or name.partition(".")[0] == "lmsi_jax":
        return False
    inner = pathlib.Path(file).resolve()
    return inner.is_relative_to(root) and "site-packages" not in inner.relative_to(root).parts
