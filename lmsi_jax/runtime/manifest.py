"""The manifest: which versions, seeds and inputs a run was made with."""

import importlib.metadata
import pathlib
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from lmsi_jax import __version__
from lmsi_jax.records import SCHEMA
from lmsi_jax.runtime.files import write_json

_MANIFEST = "manifest.json"
_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("seqio", "tensorflow", "tensorflow-text", "tensorflow-datasets", "sentencepiece"),
    *("reasoning-gym", "gin-config", "clu", "etils", "t5x"),
)


def write_manifest(
    output_dir: epath.PathLike,
    *,
    command: Sequence[str] = (),
    seeds: Mapping[str, int] | None = None,
    hashes: Mapping[str, str] | None = None,
    **extra: Any,
) -> epath.Path:
    """Writes manifest.json: what is needed to make the run again.

    Args:
      output_dir: the run's folder.
      command: the words of the command line.
      seeds: each seed by its gin name.
      hashes: the sha256 of models, tokenizers and question files.
      **extra: further JSON values, such as the devices.
    Returns:
      The path of the file. It holds no date and no home folder, so equal runs give equal bytes.
    """
    value = {
        "schema": SCHEMA,
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
    write_json(path, _without_home(value))
    return path


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _without_home(value: Any) -> Any:
    """Puts "~" for the home folder in every string of a JSON value."""
    if isinstance(value, str):
        home = re.escape(str(pathlib.Path.home()).rstrip("/"))
        return re.sub(rf"(?<![\w./-]){home}(?=/|$)", "~", value) if home else value
    if isinstance(value, Mapping):
        return {_without_home(key): _without_home(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_home(item) for item in value]
    return value
