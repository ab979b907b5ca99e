"""How gin finds and reads its files, for one load: local, in installed packages, on a bucket."""

import contextlib
import importlib.util
import io
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import IO

from lmsi_jax.errors import LmsiError

_REMOTE = re.compile(r"\w+://(?!.*://)")  # not a folder and a remote file, joined


@contextlib.contextmanager
def lookup(folders: Sequence[str]) -> Iterator[None]:
    """Where gin looks for files and includes, for one load: gin itself can only ever add places.

    Args:
      folders: local or gs://, in this order, after the path as it is written.
    """
    from gin import config

    prefixes, readers = list(config._LOCATION_PREFIXES), list(config._FILE_READERS)
    config._LOCATION_PREFIXES[:] = ["", *folders]
    # In place of gin's own, which name no file that is no text, and log an error for each file
    # that they do not find in a package.
    config._FILE_READERS[:] = [
        (_open_local, os.path.isfile),
        (_open_package_file, package_file),
        (_open_remote, _is_remote_file),
    ]
    try:
        yield
    finally:
        config._LOCATION_PREFIXES[:] = prefixes
        config._FILE_READERS[:] = readers


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


def _open_local(path: str) -> IO[str]:
    return _text_file(path, pathlib.Path(path).read_bytes())


def _open_package_file(path: str) -> IO[str]:
    return _open_local(package_file(path) or path)


def _open_remote(path: str) -> IO[str]:
    from etils import epath

    with _answered(path):
        data = epath.Path(path).read_bytes()
    return _text_file(path, data)


def _is_remote_file(path: str) -> bool:
    from etils import epath

    if not _REMOTE.match(path):
        return False
    with _answered(path):
        return epath.Path(path).exists()


@contextlib.contextmanager
def _answered(path: str) -> Iterator[None]:
    """Turns what a bucket raises, where it does not answer or not to this user, into LmsiError."""
    try:
        yield
    except _errors_of_buckets() as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LmsiError(
            f"cannot read {path} ({reason}); check its name and that you may read it, or copy the "
            "file here"
        ) from None


def _errors_of_buckets() -> tuple[type[Exception], ...]:
    from etils.epath import backend

    # epath reads gs:// through TensorFlow, whose errors are no OSErrors; KeyError: ftp://.
    return (OSError, KeyError, backend.tf_backend.tf.errors.OpError)


def _text_file(path: str, data: bytes) -> IO[str]:
    try:
        file = io.StringIO(data.decode())
    except UnicodeDecodeError:
        raise LmsiError(
            f"{path} is no text in UTF-8; give a gin file: lines such as Run.rounds = 3"
        ) from None
    file.name = path  # gin's messages say where they are
    return file
