"""Load gin configurations: T5X's flags, packaged files, and no state from one load to the next.

    --gin_file=F             a gin file, repeatable; later files override earlier ones
    --gin.NAME=VALUE         a parameter ("Run.rounds") or macro ("SEED"); VALUE is gin syntax, and
                             text that is none ("/tmp/x") becomes a string
    --gin_search_paths=A,B   folders that are searched for gin files and their includes

Files may be local, in installed packages, or on a bucket. A gin file is data: statements that
import modules would run their code, so they are refused unless `GinArgs.allow_imports` is set.
Settings that name files and Python objects relative to their gin file (`value_checks.Anchor`) are
made absolute once all is read, so the operative configuration has them whole.
"""

import contextlib
import dataclasses
import gc
import importlib
import importlib.util
import io
import os
import pathlib
import re
import shlex
import tokenize
from collections.abc import Iterator, Sequence
from typing import IO, Any

from lmsi_jax.config import gin_errors
from lmsi_jax.config.value_checks import HUB, Anchor, field_anchors
from lmsi_jax.errors import LmsiError

_FLAGS = ("--gin_file", "--gin_bindings", "--gin_search_paths")
_LITERALS = {"true": "True", "false": "False", "none": "None", "null": "None"}
_REMOTE = re.compile(r"\w+://(?!.*://)")  # not a folder joined with a remote file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Binding:
    """One `--gin.NAME=VALUE`, with the value as it was typed."""

    name: str
    value: str

    @property
    def flag(self) -> str:
        """The flag as a message shows it."""
        return f"--gin.{self.name}={shlex.quote(self.value)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GinArgs:
    """The gin flags of a command line, in their order."""

    files: tuple[str, ...] = ()
    bindings: tuple[Binding, ...] = ()
    search_paths: tuple[str, ...] = ()
    allow_imports: bool = False
    """Runs the modules that a gin file imports, and lets it call what they define."""


# --- flags ----------------------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> tuple[GinArgs, list[str]]:
    """Separates the gin flags of a command line; imports and reads nothing.

    `--gin_bindings=NAME=VALUE` is T5X's long form of `--gin.NAME=VALUE`.

    Returns:
      The gin flags, and the other arguments in their order.
    Raises:
      LmsiError: a flag has no value.
    """
    files: list[str] = []
    bindings: list[Binding] = []
    paths: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag.startswith("--gin."):
            bindings.append(_binding(word.removeprefix("--gin."), word))
        elif flag not in _FLAGS:
            rest.append(word)
        else:
            value = value if equals else next(words, "")
            if not value:
                raise LmsiError(f"{flag} needs a value: {flag}=...")
            if flag == "--gin_bindings":
                bindings.append(_binding(value, word))
            elif flag == "--gin_file":
                files.append(value)
            else:
                paths.extend(path for path in value.split(",") if path)
    args = GinArgs(files=tuple(files), bindings=tuple(bindings), search_paths=tuple(paths))
    return args, rest


def _binding(text: str, word: str) -> Binding:
    name, equals, value = text.partition("=")
    if not (equals and name.strip()):
        raise LmsiError(f"{word} has no value; write --gin.NAME=VALUE, as in --gin.Run.rounds=3")
    return Binding(name=name.strip(), value=value.strip())


def with_bindings(args: GinArgs, lines: Sequence[str]) -> GinArgs:
    """Returns flags with further bindings after their own, each a line "NAME = VALUE".

    Raises:
      LmsiError: one has no name or no value.
    """
    more = tuple(_binding(line, line) for line in lines)
    return dataclasses.replace(args, bindings=(*args.bindings, *more))


def _value(binding: Binding) -> str:
    """Returns the value as gin text: unchanged if gin can parse it, else as a quoted string."""
    if _is_gin(f"{binding.name} = {binding.value}") or binding.value[:1] in ("@", "%"):
        return binding.value
    if literal := _LITERALS.get(binding.value.lower()):
        raise LmsiError(f"{binding.flag}: write {literal}, gin's values are Python's")
    return repr(binding.value)


def _is_gin(text: str) -> bool:
    """Tells if a text is exactly one binding; unknown names count as known here."""
    from gin import config, config_parser

    try:
        statements = list(
            config_parser.ConfigParser(text, config.ParserDelegate(skip_unknown=True))
        )
    except (SyntaxError, ValueError, StopIteration, RuntimeError, tokenize.TokenError):
        return False
    kinds = [type(statement) for statement in statements]
    return kinds == [config_parser.BindingStatement] and not re.search(r"[\r\n]", text)


# --- loading --------------------------------------------------------------------------------------


def load(config: str | None, args: GinArgs) -> None:
    """Replaces gin's configuration with the given files and flags alone.

    The classes that they configure must be registered before (`lmsi_jax.config.configurables`).

    Args:
      config: a packaged name, a path or a run's folder, read before `args.files`; a run's folder
        also sets `Run.output_dir`, which flags may set anew.
      args: from `parse`.
    Raises:
      LmsiError: a file, configurable, parameter, macro or value is wrong or missing.
    """
    import gin

    files = [find_config(file, args.search_paths) for file in ([config] if config else [])]
    if config and is_run_folder(config):
        out = Binding(name="Run.output_dir", value=repr(config))
        args = dataclasses.replace(args, bindings=(out, *args.bindings))
    # A path in an installed package is left to gin.
    files += [f if package_file(f) else find_config(f, args.search_paths) for f in args.files]
    folders = [*args.search_paths, *map(os.path.dirname, files)]
    folders += map(os.fspath, _packaged_roots())
    gin.clear_config()
    try:
        with (
            lookup(folders),
            _no_collection(),
            _imports_refused(args.allow_imports),
            _binding_folders() as places,
        ):
            for file in files:
                with gin_errors.readable(file):
                    gin.parse_config_file(file)
            for binding in args.bindings:
                with gin_errors.readable(binding.flag):
                    gin.parse_config(f"{binding.name} = {_value(binding)}")
        gin_errors.check_config([binding.name for binding in args.bindings])
        _anchor(places)
    except BaseException:  # even after an interrupt, half a configuration must not be used
        gin.clear_config()
        raise


@contextlib.contextmanager
def _imports_refused(allow: bool) -> Iterator[None]:
    """Refuses import statements while gin parses, those of included files too, unless allowed.

    "import NAME" runs a module. "from __gin__ import dynamic_registration" lets the file call any
    function of any module that is loaded.
    """
    from gin import config

    def refuse(_context: object, statement: Any) -> None:
        # A ValueError gets its file and line from gin.
        raise ValueError(
            f"'{statement.format()}' would run code: a configuration is data; remove the line, or "
            "add --allow_imports if you trust this file and what it imports"
        )

    process = config.ParseContext.process_import
    if not allow:
        config.ParseContext.process_import = refuse
    try:
        yield
    finally:
        config.ParseContext.process_import = process


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Pauses the garbage collector: Python 3.11 fails to parse literals when it runs in between.

    "AST constructor recursion depth mismatch", https://github.com/python/cpython/issues/106905.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def operative_config() -> str:
    """Returns, as gin text, every parameter that was used since `load`, defaults included."""
    import gin

    return gin.operative_config_str()


# --- paths relative to their gin file -------------------------------------------------------------

_Places = dict[tuple[tuple[str, str], str], str]
"""The folder of the gin file that bound a parameter last, by gin's key and the parameter's name."""


@contextlib.contextmanager
def _binding_folders() -> Iterator[_Places]:
    """Yields the folder of each binding while gin parses, which gin itself does not record.

    Bindings of the command line are of the current folder.
    """
    from gin import config

    bind, parse = config.bind_parameter, config.parse_config
    places: _Places = {}
    folders = [os.getcwd()]

    def bind_here(binding_key: object, value: object) -> None:
        bind(binding_key, value)
        key = config.ParsedBindingKey.parse(binding_key)
        places[key.config_key, key.arg_name] = folders[-1]

    def parse_here(bindings: object, *args: object, **kwargs: object) -> object:
        name = getattr(bindings, "name", None)  # of a file; a flag is text
        folder = os.path.dirname(name) if isinstance(name, str) else folders[-1]
        folders.append(folder if "://" in folder else os.path.abspath(folder))
        try:
            return parse(bindings, *args, **kwargs)
        finally:
            folders.pop()

    config.bind_parameter, config.parse_config = bind_here, parse_here
    try:
        yield places
    finally:
        config.bind_parameter, config.parse_config = bind, parse


def _anchor(places: _Places) -> None:
    """Makes relative paths and objects of gin's configuration absolute."""
    from gin import config

    for key, bindings in config._CONFIG.items():
        wrapped: Any = config._REGISTRY.get_match(key[1]).wrapped
        for name, anchor in field_anchors(wrapped).items():
            if name not in bindings:
                continue
            at = (key, name)
            value = bindings[name]
            if isinstance(value, config.ConfigurableReference) and repr(value)[0] == "%":
                at = (value.config_key, "value")  # a macro, which may be bound in another file
                value = config._CONFIG[at[0]]["value"]
            config._CONFIG[at[0]][at[1]] = _anchored(value, anchor, places.get(at, os.getcwd()))
        if wrapped.__name__ == "Run" and "schedule" in bindings:
            folder = places.get((key, "schedule"), os.getcwd())
            bindings["schedule"] = _anchored_schedule(bindings["schedule"], folder)


def _anchored_schedule(schedule: Any, folder: str) -> Any:
    """Returns `Run.schedule` with anchored values; one of another form is refused later."""
    from gin import config

    anchored = []
    for entry in schedule if isinstance(schedule, tuple | list) else ():
        if isinstance(entry, tuple | list) and len(entry) == 2 and isinstance(entry[0], str):
            part, _, field = entry[0].partition(".")
            match = config._REGISTRY.get_match(part)
            if match and (anchor := field_anchors(match.wrapped).get(field)):
                entry = (entry[0], _anchored(entry[1], anchor, folder))
        anchored.append(entry)
    return type(schedule)(anchored) if anchored else schedule


def _anchored(value: Any, anchor: Anchor, folder: str) -> Any:
    """Returns a value with its relative paths, or its objects beside the gin file, absolute."""
    if isinstance(value, tuple | list):
        return type(value)(_anchored(item, anchor, folder) for item in value)
    if not isinstance(value, str) or not value:
        return value
    if anchor.what == "cwd_path":
        return os.path.expanduser(value)
    if anchor.what == "path":
        if value.startswith(HUB) or "://" in value or os.path.isabs(os.path.expanduser(value)):
            return os.path.expanduser(value)
        return f"{folder.rstrip('/')}/{value}"
    path, colon, name = value.rpartition(":")
    folders, _, module = os.path.expanduser(path).rpartition("/")
    place = os.path.normpath(os.path.join(folder, folders))
    file = os.path.join(place, *module.split("."))
    here = os.path.isfile(f"{file}.py") or os.path.isfile(os.path.join(file, "__init__.py"))
    return f"{place}/{module}:{name}" if colon and here else value


# --- files ----------------------------------------------------------------------------------------


def packaged_configs(kind: str = "runs") -> tuple[str, ...]:
    """Returns the names that `lmsi run NAME` finds; of kind "studies", those of `lmsi study`."""
    names = {path.stem for root in _packaged_roots() for path in (root / kind).glob("*.gin")}
    return tuple(sorted(names))


def find_config(name: str, search_paths: Sequence[str] = (), kind: str = "runs") -> str:
    """Returns the gin file of a configuration's name or path.

    A path to a file or a run's folder comes first, then `NAME.gin` and `KIND/NAME.gin` in the
    search paths and in the packaged `gin_configs`.

    Raises:
      LmsiError: there is none; the message lists the packaged names, the nearest one first.
    """
    if name.endswith(".gin") and ("://" in name or os.path.isfile(name)):
        return name
    if kind == "runs" and is_run_folder(name):
        return f"{name.rstrip('/')}/{_CONFIG_OF_RUN}"
    file = name if name.endswith(".gin") else f"{name}.gin"
    roots = [*map(pathlib.Path, search_paths), *_packaged_roots()]
    for path in (root / folder / file for root in roots for folder in ("", kind)):
        if path.is_file():
            return os.fspath(path)
    names = packaged_configs(kind)
    near = gin_errors.suggestion(name, names) or "."
    raise LmsiError(
        f"there is no configuration {name!r}{near} "
        f"Packaged: {', '.join(names) or 'none'}; or give the path of a .gin file"
        + (" or the folder of a run" if kind == "runs" else "")
    )


_CONFIG_OF_RUN = "config.gin"


def is_run_folder(name: str) -> bool:
    """Returns True if a name is a local run's folder; a packaged name is one only with a "/"."""
    if "/" not in name and name in packaged_configs("runs"):
        return False
    return os.path.isfile(os.path.join(name, _CONFIG_OF_RUN))


def package_file(path: str) -> str | None:
    """Returns the file of "t5x/configs/x.gin" in the installed package t5x, or None."""
    package, _, inner = path.partition("/")
    if not (inner and package.isidentifier()):
        return None
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations if spec else None) or ():
        if os.path.isfile(os.path.join(root, inner)):
            return os.path.join(root, inner)
    return None


@contextlib.contextmanager
def lookup(folders: Sequence[str]) -> Iterator[None]:
    """Sets where gin looks for files and includes, for one load; gin itself can only add places.

    Args:
      folders: local or gs://, in this order, after the path as it is written.
    """
    from gin import config

    prefixes, readers = list(config._LOCATION_PREFIXES), list(config._FILE_READERS)
    config._LOCATION_PREFIXES[:] = ["", *folders]
    # Gin's own readers do not name a file that is no text, and log an error for each file that is
    # not in a package.
    config._FILE_READERS[:] = [
        (_open_local, os.path.isfile),
        (lambda path: _open_local(package_file(path) or path), package_file),
        (_open_remote, _is_remote_file),
    ]
    try:
        yield
    finally:
        config._LOCATION_PREFIXES[:] = prefixes
        config._FILE_READERS[:] = readers


def _packaged_roots() -> list[pathlib.Path]:
    package = importlib.import_module("lmsi_jax.gin_configs")
    return [pathlib.Path(path) for path in package.__path__]


def _open_local(path: str) -> IO[str]:
    return _text_file(path, pathlib.Path(path).read_bytes())


def _open_remote(path: str) -> IO[str]:
    from etils import epath

    with _readable_bucket(path):
        data = epath.Path(path).read_bytes()
    return _text_file(path, data)


def _is_remote_file(path: str) -> bool:
    from etils import epath

    if not _REMOTE.match(path):
        return False
    with _readable_bucket(path):
        return epath.Path(path).exists()


@contextlib.contextmanager
def _readable_bucket(path: str) -> Iterator[None]:
    """Turns the errors of a bucket that does not answer, or not this user, into LmsiErrors."""
    try:
        yield
    except _bucket_errors() as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LmsiError(
            f"cannot read {path} ({reason}); check its name and that you may read it, or copy the "
            "file here"
        ) from None


def _bucket_errors() -> tuple[type[Exception], ...]:
    from etils.epath import backend

    # epath reads gs:// through TensorFlow, whose errors are no OSErrors; KeyError: ftp://.
    return (OSError, KeyError, backend.tf_backend.tf.errors.OpError)


def _text_file(path: str, data: bytes) -> IO[str]:
    try:
        file = io.StringIO(data.decode())
    except UnicodeDecodeError:
        raise LmsiError(
            f"{path} is not UTF-8 text; give a gin file with lines such as Run.rounds = 3"
        ) from None
    file.name = path  # gin's messages name it
    return file
