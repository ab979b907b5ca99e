"""Files that are written whole or not at all; local or gs://."""

import errno
import hashlib
import json
import os
import pathlib
import uuid
from typing import Any

from etils import epath

from lmsi_jax.errors import LmsiError

TEMPORARY = ".tmp"  # how the name of an unfinished file ends; it begins with a full stop
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}


def write_bytes(path: epath.PathLike, data: bytes) -> None:
    """Writes a file whole or not at all, making its folder where needed.

    Raises:
      LmsiError: the disk is full or the folder cannot be written; nothing half-written stays.
    """
    path = epath.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if "://" in os.fspath(path):
            path.write_bytes(data)  # an object appears when its upload has ended, and then whole
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
    except BaseException:  # whatever ends this, a signal too: half a file is to be gone
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # a rename survives a power cut only once the folder itself is on disk
    finally:
        os.close(folder)


def cannot(verb: str, path: epath.PathLike, error: OSError) -> LmsiError:
    """Turns the system's error into one that names the path and the remedy."""
    remedy = "check the path, or choose another output_dir"
    if error.errno in _FULL:
        remedy = "make room on the disk, then repeat the command: it goes on where it was"
    elif error.errno in _CLOSED:
        remedy = "make it writable, or choose another output_dir"
    return LmsiError(f"cannot {verb} {os.fspath(path)}: {error.strerror or error}; {remedy}")


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys, whole or not at all."""
    write_bytes(
        path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    )


def read_json(path: epath.PathLike) -> Any:
    """Reads what `write_json` wrote.

    Raises:
      LmsiError: there is no such file, or it is no JSON.
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
    """Removes a file if it is there.

    Raises:
      LmsiError: the folder cannot be written.
    """
    try:
        epath.Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise cannot("remove", path, error) from error
