"""Writes files atomically, local or on gs://, and local folders too."""

import contextlib
import errno
import fcntl
import glob
import gzip
import hashlib
import importlib.resources
import io
import json
import os
import pathlib
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from lmsi_jax.errors import Damaged, LmsiError
from lmsi_jax.records import SCHEMA

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
            with contextlib.suppress(OSError):  # of a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # see remove_abandoned_files
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


def remove_abandoned_files(folder: epath.PathLike) -> None:
    """Removes unfinished files that killed processes left in a local folder itself."""
    if "://" in os.fspath(folder):
        return
    for path in pathlib.Path(folder).glob(f".*{TEMPORARY}"):
        with contextlib.suppress(OSError):  # another process may have finished it
            if path.is_file():
                with _lock(path) as acquired:
                    if acquired:
                        path.unlink()


@contextlib.contextmanager
def exclusive(folder: epath.PathLike) -> Iterator[None]:
    """Keeps other processes that do the same out of a local folder, which is created if needed.

    Unfinished files of killed processes are removed from it and from the folders in it.

    Raises:
      LmsiError: another process works in it.
    """
    if "://" in os.fspath(folder):
        yield
        return
    path = pathlib.Path(folder)
    existed = path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise cannot("open", folder, error) from error
    try:
        with contextlib.suppress(OSError):  # of a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LmsiError(
                    f"another lmsi command works in {os.fspath(folder)}; wait until it has ended, "
                    "or choose another output_dir"
                ) from None
        for part in (path, *(child for child in path.iterdir() if child.is_dir())):
            remove_abandoned_files(part)
        yield
    finally:
        os.close(handle)
        if not existed:
            with contextlib.suppress(OSError):
                path.rmdir()  # if nothing was written into it


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


@contextlib.contextmanager
def system_errors(folder: epath.PathLike) -> Iterator[None]:
    """Turns errors of the system while libraries write into a folder into LmsiErrors.

    TensorStore's are ValueErrors with the error's number in their text, TensorFlow's have its
    words.
    """
    try:
        yield
    except LmsiError:
        raise
    except OSError as error:
        raise cannot("write", folder, error) from error
    except Exception as error:
        text = str(error)
        number = re.search(r"os_error_code='(\d+)'", text)
        known = (code for code in sorted(_FULL | _CLOSED) if os.strerror(code) in text)
        code = int(number[1]) if number else next(known, None)
        if code is None:
            raise
        raise cannot("write", folder, OSError(code, os.strerror(code))) from error


def is_of_disk(error: OSError) -> bool:
    """Returns True if an error is of a disk that is full, or a place that cannot be written."""
    return error.errno in _FULL | _CLOSED


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes `value` atomically as indented JSON with sorted keys.

    Raises:
      LmsiError: as `write_bytes`, or a number is NaN or infinite.
    """
    try:
        data = _json_bytes(value)
    except ValueError as error:
        raise LmsiError(
            f"{os.fspath(path)} would have a number that is NaN or infinite ({error}); the model "
            "or the scorer used is damaged: name another"
        ) from error
    write_bytes(path, data)


def read_json(path: epath.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      LmsiError: there is no such file, or it is not JSON.
    """
    path = epath.Path(path)
    check_regular(path)
    try:
        return parse_json(path.read_text())
    except ValueError:
        raise LmsiError(
            f"{os.fspath(path)} is damaged (no JSON); delete it and repeat the command"
        ) from None
    except OSError as error:
        raise LmsiError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from error


_RECORD_DIGEST = "record_sha256"


def write_record(path: epath.PathLike, value: Mapping[str, Any]) -> None:
    """Writes a JSON object with a digest of itself, by which `read_record` knows it unaltered."""
    write_json(path, {**value, _RECORD_DIGEST: _record_digest(value)})


def read_record(path: epath.PathLike) -> dict[str, Any]:
    """Reads a record, without its digest.

    Raises:
      Damaged: it is not as `write_record` wrote it.
      LmsiError: there is no such file, or another version has written it.
    """
    remedy = "delete it and repeat the command that made it, `lmsi run` for a run's"
    try:
        value = read_json(path)
    except LmsiError as error:
        if not epath.Path(path).exists():
            raise
        raise Damaged(f"{os.fspath(path)} is damaged; {remedy}") from error
    if isinstance(value, dict):
        digest = value.pop(_RECORD_DIGEST, None)
        if digest is None and value.get("schema") in range(SCHEMA):
            raise LmsiError(
                f"{os.fspath(path)} is of another version of lmsi_jax (schema {value['schema']}, "
                f"here {SCHEMA}); use that version, or start anew in another folder"
            )
        if digest == _record_digest(value) and _json_bytes({**value, _RECORD_DIGEST: digest}) == (
            epath.Path(path).read_bytes()
        ):
            return value
    raise Damaged(f"{os.fspath(path)} was altered; {remedy}")


def _record_digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _json_bytes(value: Any) -> bytes:
    return f"{json.dumps(value, indent=2, sort_keys=True, allow_nan=False)}\n".encode()


_DATA_BYTES = 1 << 30
_DOCUMENT_BYTES = 128 << 20
_GZIP = b"\x1f\x8b"  # the first bytes of such a file


def read_bytes(path: epath.PathLike) -> bytes:
    """Reads a whole file of a user's in bounded memory; reading a named pipe may wait forever.

    Raises:
      LmsiError: it is no regular file, or has more than 1 GiB.
      OSError: it cannot be read.
    """
    path = epath.Path(path)
    check_regular(path)
    if path.stat().length > _DATA_BYTES:
        raise _too_large(path, "has")
    return path.read_bytes()


def read_data(path: epath.PathLike, *, compressed: bool = False) -> bytes:
    """Reads a whole file of data, decompressed if it is gzip, in bounded memory.

    A small gzip file may expand to any size.

    Args:
      path: the file, local or on a bucket.
      compressed: it must be gzip; otherwise its first bytes tell.

    Raises:
      LmsiError: it is no regular file, or has more than 1 GiB.
      OSError, EOFError, zlib.error: it cannot be read, or is no whole gzip file.
    """
    path = epath.Path(path)
    data = read_bytes(path)
    if not (compressed or data.startswith(_GZIP)):
        return data
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        content = file.read(_DATA_BYTES + 1)
    check_expanded(path, len(content))
    return content


def check_expanded(path: epath.PathLike, size: int) -> None:
    """Raises LmsiError if the content of a compressed file has more than 1 GiB.

    Args:
      path: the file.
      size: bytes of the content, as far as it is known.
    """
    if size > _DATA_BYTES:
        raise _too_large(epath.Path(path), "expands to")


def expanded_limit() -> int:
    """Returns the largest size of a content in bytes."""
    return _DATA_BYTES


def _too_large(path: epath.Path, has: str) -> LmsiError:
    return LmsiError(
        f"{os.fspath(path)} {has} more than {_DATA_BYTES >> 20:,} MiB; split it into smaller files"
    )


def check_regular(path: epath.PathLike) -> None:
    """Raises LmsiError if a local path is a pipe, a socket or a device."""
    local = pathlib.Path(path)  # epath takes a pipe for a file
    if "://" in os.fspath(path) or not local.exists() or local.is_file() or local.is_dir():
        return
    raise LmsiError(f"{os.fspath(path)} is no regular file; name a file with this content")


def parse_json(text: str | bytes) -> Any:
    """Parses a JSON document of at most 128 MiB: its values may take 25 times as much memory.

    Raises:
      ValueError: it is no JSON, nested too deeply, or larger; a `json.JSONDecodeError` tells where.
    """
    if len(text) > _DOCUMENT_BYTES:
        raise ValueError(
            f"a JSON document of more than {_DOCUMENT_BYTES >> 20} MiB; write one object a line"
        )
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("values are nested too deeply") from None


def file_sha256(path: epath.PathLike) -> str:
    """Returns the hexadecimal sha256 of a file's bytes.

    Raises:
      LmsiError: it is no regular file.
    """
    digest = hashlib.sha256()
    check_regular(epath.Path(path))
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


def in_bytes(size: float) -> str:
    """Returns a size with its unit: 19_500_000 -> "20 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if size >= 9.95 or unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
