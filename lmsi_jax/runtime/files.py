"""Writes files atomically, local or on gs://, and local folders too."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import importlib.resources
import json
import os
import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from lmsi_jax.errors import LmsiError

TEMPORARY = ".tmp"  # ends the name of an unfinished file, which begins with a full stop
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}


def write_bytes(path: epath.PathLike, data: bytes) -> None:
    """Writes a file atomically and creates its folder if needed.

    Raises:
      LmsiError: the disk is full or the folder cannot be written; no partial file remains.
    """
    path = epath.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if "://" in os.fspath(path):
            path.write_bytes(data)  # an object appears only once its upload is complete
        else:
            _replace(path, data)
    except OSError as error:
        raise cannot("write", path, error) from error


def _replace(path: epath.Path, data: bytes) -> None:
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # also a signal: no partial file may remain
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # a rename survives a power cut only once the folder itself is on disk
    finally:
        os.close(folder)


@contextlib.contextmanager
def new_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder, renamed to `out` if the block succeeds and removed otherwise.

    Temporary folders of killed processes for the same `out` are removed first.

    Raises:
      LmsiError: `out` exists already, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LmsiError(f"{out} is there already; remove it, or name another folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out)
        temporary = tempfile.mkdtemp(prefix=f".{out.name}.", suffix=TEMPORARY, dir=out.parent)
        try:
            with _lock(temporary):
                os.chmod(temporary, 0o755)
                yield pathlib.Path(temporary)
                os.replace(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # after success there is nothing to remove
    except OSError as error:
        raise cannot("write", out, error) from error


def _remove_abandoned(out: pathlib.Path) -> None:
    """Removes the temporary folders of `out` that no process holds."""
    for folder in out.parent.glob(f".{glob.escape(out.name)}.*{TEMPORARY}"):
        if folder.is_dir():
            with _lock(folder) as acquired:
                if acquired:
                    shutil.rmtree(folder)


@contextlib.contextmanager
def _lock(folder: epath.PathLike) -> Iterator[bool]:
    """Tries to lock a folder; yields True on success. The lock ends with the process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process holds it, or the file system has no locks
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def cannot(verb: str, path: epath.PathLike, error: OSError) -> LmsiError:
    """Converts an error of the system to one that names the path and the remedy."""
    remedy = "check the path, or choose another output_dir"
    if error.errno in _FULL:
        remedy = "make room on the disk, then repeat the command to resume"
    elif error.errno in _CLOSED:
        remedy = "make it writable, or choose another output_dir"
    return LmsiError(f"cannot {verb} {os.fspath(path)}: {error.strerror or error}; {remedy}")


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes `value` atomically as indented JSON with sorted keys."""
    write_bytes(
        path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    )


def read_json(path: epath.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      LmsiError: there is no such file, or it is not JSON.
    """
    try:
        return json.loads(epath.Path(path).read_text())
    except ValueError:
        raise LmsiError(
            f"{os.fspath(path)} is damaged (no JSON); delete it and repeat the command"
        ) from None
    except OSError as error:
        raise LmsiError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from error


def file_sha256(path: epath.PathLike) -> str:
    """Returns the hexadecimal sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def remove(path: epath.PathLike) -> None:
    """Removes a file if it exists.

    Raises:
      LmsiError: the folder cannot be written.
    """
    try:
        epath.Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise cannot("remove", path, error) from error


def embedded_path(name: str) -> epath.Path:
    """Returns the path of a file or folder of the embedded model."""
    path = epath.Path(str(importlib.resources.files("lmsi_jax") / "models" / "embedded" / name))
    if not path.exists():
        raise LmsiError(f"the embedded {name} is missing from this installation; install it again")
    return path
