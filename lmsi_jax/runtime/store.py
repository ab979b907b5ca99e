"""Stores shards of records, finished stages and the manifest of a run; local or gs://.

Files are written atomically, and their sha256 is checked when they are read. So a killed run
continues with what is missing, on any number of hosts; damaged files are made again, never read.

    OUTPUT_DIR/STAGE/config.json        configuration and inputs of the stage
                     NAME.jsonl.gz      a shard: gzip JSON Lines, the same bytes for the same rows
                     NAME.check.json    its sha256 and its number of rows
                     stage.json         written last: the stage is finished
               manifest.json             versions, seeds and inputs of the run
"""

import contextlib
import gzip
import hashlib
import importlib.metadata
import io
import json
import logging
import os
import pathlib
import platform
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from etils import epath

from lmsi_jax import __version__
from lmsi_jax.errors import Damaged, LmsiError
from lmsi_jax.records import SCHEMA
from lmsi_jax.runtime.files import (
    TEMPORARY,
    file_sha256,
    read_json,
    read_record,
    remove,
    write_bytes,
    write_json,
    write_record,
)

_LOG = logging.getLogger(__name__)
_SHARD, _CHECK = ".jsonl.gz", ".check.json"
_CONFIG, _STAGE = "config.json", "stage.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MANIFEST, _CONFIG_TEXT = "manifest.json", "config.gin"
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "seqio",
    "tensorflow",
    "tensorflow-text",
    "tensorflow-datasets",
    "sentencepiece",
    "reasoning-gym",
    "gin-config",
    "etils",
    "t5x",
)


def shard_names(count: int) -> tuple[str, ...]:
    """Returns the names of `count` shards: "00000-of-00004", ..."""
    return tuple(f"{index:05d}-of-{count:05d}" for index in range(count))


class ShardStore:
    """A folder of named shards, each a list of JSON rows, each complete or absent."""

    def __init__(self, directory: epath.PathLike):
        self.directory = epath.Path(directory)

    def path(self, shard_name: str) -> epath.Path:
        """Returns the path of a shard."""
        return self.directory / f"{shard_name}{_SHARD}"

    def _check(self, shard_name: str) -> epath.Path:
        return self.directory / f"{shard_name}{_CHECK}"

    def write(self, shard_name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes a shard atomically; equal rows give equal bytes.

        Raises:
          LmsiError: the disk is full, the folder cannot be written, or a row has a number that is
            NaN or infinite.
        """
        if not _NAME.fullmatch(shard_name):
            raise ValueError(f"{shard_name!r} is no shard name")
        lines = [self._line(shard_name, number, row) for number, row in enumerate(rows, 1)]
        data = _gzip("".join(f"{line}\n" for line in lines).encode())
        write_bytes(self.path(shard_name), data)
        # Last: a shard is complete only once it has this file.
        check = {"rows": len(lines), "sha256": hashlib.sha256(data).hexdigest()}
        write_json(self._check(shard_name), check)

    def _line(self, shard_name: str, number: int, row: Mapping[str, Any]) -> str:
        try:
            return json.dumps(row, sort_keys=True, allow_nan=False)
        except ValueError:
            where = f" (question {row['uid']!r})" if "uid" in row else ""
            raise LmsiError(
                f"{os.fspath(self.path(shard_name))}: row {number}{where} has a number that is NaN "
                "or infinite, so the model or the scorer used is damaged; name another"
            ) from None

    def names(self) -> tuple[str, ...]:
        """Returns the complete shards, sorted; `missing` and `read` check their contents."""
        if not self.directory.is_dir():
            return ()
        files = {entry.name for entry in self.directory.iterdir()}
        names = (file.removesuffix(_SHARD) for file in files if file.endswith(_SHARD))
        return tuple(sorted(name for name in names if f"{name}{_CHECK}" in files))

    def missing(self, expected: Iterable[str]) -> tuple[str, ...]:
        """Returns the shards of `expected` that must be made, in order; deletes damaged ones."""
        return tuple(name for name in expected if not self._is_sound(name))

    def read(self, shard_name: str) -> list[dict[str, Any]]:
        """Returns a shard's rows.

        Raises:
          LmsiError: the shard is absent, or it was altered and is now deleted, to be made again.
        """
        data = self._bytes(shard_name)
        if data is None:
            path = os.fspath(self.path(shard_name))
            raise LmsiError(f"{path} is missing; repeat the command of the stage that makes it")
        rows = [json.loads(line) for line in gzip.decompress(data).splitlines()]
        count = read_json(self._check(shard_name)).get("rows")
        if count != len(rows):
            check = os.fspath(self._check(shard_name))
            raise Damaged(f"{check} was altered ({count} rows); delete it and repeat the command")
        return rows

    def _is_sound(self, shard_name: str) -> bool:
        try:
            return self._bytes(shard_name) is not None
        except LmsiError as damage:
            _LOG.warning("%s", damage)
            return False

    def _bytes(self, shard_name: str) -> bytes | None:
        """Returns the bytes of a shard, or None; deletes a damaged one and raises LmsiError."""
        path, check = self.path(shard_name), self._check(shard_name)
        if not (path.exists() and check.exists()):
            return None
        data = path.read_bytes()
        try:
            expected = json.loads(check.read_text())["sha256"]
        except (ValueError, TypeError, KeyError):
            expected = None
        if hashlib.sha256(data).hexdigest() == expected:
            return data
        remove(check)  # first: without it the shard is not complete
        remove(path)
        raise LmsiError(
            f"{os.fspath(path)} was truncated or altered and has been dropped; "
            "repeat the command of its stage to make it anew"
        )


def _gzip(data: bytes) -> bytes:
    # gzip.compress(mtime=0) writes a header byte that depends on the version of Python.
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=buffer, mtime=0) as file:
        file.write(data)
    return buffer.getvalue()


class Stage:
    """The folder of a stage with its configuration, inputs and state.

    `config` contains the parameters that determine the outputs ("Sampling.temperature": 0.7, or
    nested), `inputs` the fingerprints of what the stage reads. Both must be JSON values.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        name: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, str] | None = None,
    ):
        self.directory = epath.Path(directory)
        self.name = name
        # Through JSON and back, to equal what is read later: lists for tuples, sorted names.
        self.config: dict[str, Any] = json.loads(json.dumps(dict(config), sort_keys=True))
        self.inputs = dict(inputs or {})
        self._started = time.monotonic()

    @property
    def fingerprint(self) -> str:
        """The sha256 over name, configuration and inputs: the next stage's input."""
        value = {"name": self.name, "config": self.config, "inputs": self.inputs}
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    def begin(self) -> Literal["done", "resume", "new"]:
        """Returns the state of the stage and records its configuration and inputs.

        Returns:
          "done" if it is finished with unaltered outputs, "resume" if it was begun with the same
          configuration and inputs, "new" if the folder was empty. Damage is named.

        Raises:
          LmsiError: the folder holds this stage with another configuration or other inputs, or
            nothing sound says what it holds.
        """
        self._started = time.monotonic()
        path = self.directory / _CONFIG
        before = read_identity(self.directory)
        if before is None:
            write_record(path, self._identity())
            return "new"
        self._compare(before)
        if not _is_sound(path):
            _LOG.warning("%s was missing or altered and has been written anew", os.fspath(path))
            write_record(path, self._identity())
        record = self._finished()
        return "done" if record is not None and self._intact(record) else "resume"

    def finish(self, outputs: Iterable[epath.PathLike] | None = None) -> None:
        """Records the stage as finished.

        Args:
          outputs: files or folders inside the stage's folder to record by sha256; None for all.
        """
        for path in self.directory.iterdir():
            if path.name.startswith(".") and path.name.endswith(TEMPORARY):
                remove(path)  # of a killed process; nobody writes here any more
        roots = [self.directory] if outputs is None else [epath.Path(path) for path in outputs]
        files = {
            file.relative_to(self.directory).as_posix(): file
            for root in roots
            for file in _files(root)
        }
        for name in (_CONFIG, _STAGE):
            files.pop(name, None)
        record = self._identity() | {
            "fingerprint": self.fingerprint,
            "outputs": {key: file_sha256(file) for key, file in sorted(files.items())},
            "seconds": round(time.monotonic() - self._started, 3),
        }
        write_record(self.directory / _STAGE, record)

    def _identity(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "name": self.name,
            "config": self.config,
            "inputs": self.inputs,
        }

    def _finished(self) -> dict[str, Any] | None:
        """Returns the record of the finished stage; drops one that is damaged, or another's."""
        path = self.directory / _STAGE
        if not path.exists():
            return None
        try:
            record = read_record(path)
        except Damaged:
            reason = "was altered"
        else:
            if record["fingerprint"] == self.fingerprint:
                return record
            reason = "is of another run"
        _LOG.warning("stage %s resumes: %s %s and has been dropped", self.name, path, reason)
        remove(path)
        return None

    def _compare(self, before: Mapping[str, Any]) -> None:
        changes = [
            *_changes({"name": before.get("name")}, {"name": self.name}),
            *_changes({"schema": before.get("schema")}, {"schema": SCHEMA}),
            *_changes(_flat(before.get("config") or {}), _flat(self.config)),
            *_changes(_short(before.get("inputs") or {}), _short(self.inputs)),
        ]
        if changes:
            more = f" and {len(changes) - 6} more" if len(changes) > 6 else ""
            folder = os.fspath(self.directory)
            raise LmsiError(
                f"{folder} holds the stage {self.name!r} of another run: "
                f"{'; '.join(changes[:6])}{more}.\nChoose another output_dir, or delete {folder}."
            )

    def _intact(self, record: Mapping[str, Any]) -> bool:
        """Compares the outputs with the record; deletes altered ones and, with any, the record."""
        damage = []
        for key, expected in record["outputs"].items():
            path = self.directory / key
            if not path.exists():
                damage.append(f"{os.fspath(path)} is missing")
            elif file_sha256(path) != expected:
                damage.append(f"{os.fspath(path)} was altered and has been dropped")
                remove(path)
        if damage:
            _LOG.warning("stage %s resumes: %s", self.name, "; ".join(damage))
            remove(self.directory / _STAGE)
        return not damage


def read_identity(directory: epath.Path) -> dict[str, Any] | None:
    """Reads what a stage's folder was begun with: its name, settings and inputs; None if nothing.

    A finished stage's record repeats them, so either of the two may be lost.

    Raises:
      LmsiError: both are lost, or another version has written them.
    """
    begun, finished = directory / _CONFIG, directory / _STAGE
    for path in (begun, finished):
        if path.exists():
            with contextlib.suppress(Damaged):
                return read_record(path)
    if not (begun.exists() or finished.exists() or ShardStore(directory).names()):
        return None
    folder = os.fspath(directory)
    raise Damaged(
        f"{os.fspath(begun)} is missing or was altered, so nothing says which settings made "
        f"{folder}; delete that folder and repeat the command: it makes it anew"
    )


def read_finished(directory: epath.Path) -> dict[str, Any]:
    """Reads the record of a finished stage: its settings, inputs, fingerprint, outputs and seconds.

    Raises:
      LmsiError: it is missing, was altered, or is of another run than the folder.
    """
    path = directory / _STAGE
    record = read_record(path)
    begun = record
    with contextlib.suppress(LmsiError):  # that command repairs it which takes the stage up
        begun = read_record(directory / _CONFIG)
    if any(record.get(name) != value for name, value in begun.items()):
        raise Damaged(
            f"{os.fspath(path)} is of another run than {_CONFIG} beside it; delete it and repeat "
            "the command that made it, `lmsi run` for a run's"
        )
    return record


def check_shards(directory: epath.Path) -> None:
    """Checks that a finished stage's shards are there; what they hold is checked as it is read.

    Raises:
      LmsiError: one is missing, or the record was altered.
    """
    shards = [key for key in read_finished(directory)["outputs"] if key.endswith((_SHARD, _CHECK))]
    missing = [key for key in shards if not (directory / key).exists()]
    if missing:
        raise Damaged(
            f"{os.fspath(directory / missing[0])} is missing; repeat `lmsi run`, or the other "
            "command of its stage: it makes it anew"
        )


def check_output(path: epath.Path) -> None:
    """Checks a file of a stage's folder against the stage's record, if that is finished.

    Raises:
      LmsiError: the file is missing, or it or the record was altered.
    """
    if not (path.parent / _STAGE).exists():
        return
    expected = read_finished(path.parent)["outputs"].get(path.name)
    if expected is not None and not (path.exists() and file_sha256(path) == expected):
        raise Damaged(
            f"{os.fspath(path)} is missing or was altered; repeat `lmsi run`, or the other command "
            "of its stage: it makes it anew"
        )


def _is_sound(path: epath.Path) -> bool:
    try:
        read_record(path)
    except LmsiError:
        return False
    return True


def _files(root: epath.Path) -> list[epath.Path]:
    """Returns a file or all files below a folder (epath has no recursive glob for gs://)."""
    if not root.is_dir():
        return [root]
    return [file for path in root.iterdir() for file in _files(path)]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Joins the names of nested dictionaries with dots."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _short(inputs: Mapping[str, str]) -> dict[str, str]:
    """Shortens fingerprints for messages."""
    return {f"input {name}": value[:12] for name, value in inputs.items()}


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    lines = []
    for name in sorted({*before, *now}):
        old, new = (repr(side[name]) if name in side else "not set" for side in (before, now))
        if old != new:
            lines.append(f"{name} was {old}, is now {new}")
    return lines


def write_manifest(
    output_dir: epath.PathLike,
    *,
    command: Sequence[str] = (),
    seeds: Mapping[str, int] | None = None,
    hashes: Mapping[str, str] | None = None,
    **extra: Any,
) -> epath.Path:
    """Writes manifest.json: versions, seeds and inputs, to reproduce the run.

    Args:
      output_dir: the run's folder.
      command: the words of the command line.
      seeds: each seed by its gin name.
      hashes: the sha256 of models, tokenizers and question files.
      **extra: further JSON values, such as the devices.

    Returns:
      The path of the file. It has no date and no home folder, so equal runs give equal bytes.
    """
    config = epath.Path(output_dir) / _CONFIG_TEXT
    value = {
        "schema": SCHEMA,
        "config_sha256": file_sha256(config) if config.exists() else "",
        "lmsi_jax": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "command": list(command),
        "seeds": dict(seeds or {}),
        "hashes": dict(hashes or {}),
        **extra,
    }
    path = epath.Path(output_dir) / _MANIFEST
    write_record(path, _without_home(value))
    return path


def name_altered_description(output_dir: epath.PathLike, hashes: Mapping[str, str]) -> None:
    """Names a manifest or a config.gin that is not as it was written, before they are replaced.

    Args:
      output_dir: the run's folder.
      hashes: of `write_manifest`, for the run as it is now.
    """
    path = epath.Path(output_dir) / _MANIFEST
    config = path.parent / _CONFIG_TEXT
    if not (path.exists() or config.exists()):
        return
    try:
        before = read_record(path)
    except LmsiError:
        _LOG.warning("%s is missing or was altered; it is written anew", os.fspath(path))
        return
    known = before["hashes"]
    if any(known[name] != value for name, value in hashes.items() if name in known):
        _LOG.warning("%s is of another run; it is written anew", os.fspath(path))
    elif not config.exists() or file_sha256(config) != before["config_sha256"]:
        _LOG.warning("%s is missing or was altered; it is written anew", os.fspath(config))


def read_config_text(output_dir: epath.PathLike) -> str | None:
    """Reads a run's config.gin; None if it is missing, or named if it is not as it was written."""
    config = epath.Path(output_dir) / _CONFIG_TEXT
    if not config.exists():
        return None
    try:
        if read_record(config.parent / _MANIFEST)["config_sha256"] == file_sha256(config):
            return config.read_text()
    except LmsiError:
        pass
    _LOG.warning("%s or its manifest was altered, and is not shown", os.fspath(config))
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _without_home(value: Any) -> Any:
    """Replaces the home folder by "~" in every string of a JSON value."""
    if isinstance(value, str):
        home = re.escape(str(pathlib.Path.home()).rstrip("/"))
        return re.sub(rf"(?<![\w./-]){home}(?=/|$)", "~", value) if home else value
    if isinstance(value, Mapping):
        return {_without_home(key): _without_home(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_home(item) for item in value]
    return value
