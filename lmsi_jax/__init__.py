"""lmsi_jax: language models improve their own reasoning without labels, in JAX.

The loop as functions: `load` a model, `sample`, `vote`, `select`, `mix`, `train`, `evaluate`. They
are imported when they are first used (`lmsi_jax.api`); settings are in `lmsi_jax.config`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmsi_jax.api import (
        Model,
        engine,
        evaluate,
        load,
        mix,
        sample,
        select,
        task,
        train,
        vote,
    )

    __version__: str

__all__ = [
    "Model",
    "engine",
    "evaluate",
    "load",
    "mix",
    "sample",
    "select",
    "task",
    "train",
    "vote",
]


def __getattr__(name: str) -> Any:
    """Imports a function of `lmsi_jax.api` at its first use; `__version__` is read at its first."""
    if name == "__version__":
        return _version()
    if name not in __all__:
        raise AttributeError(f"module 'lmsi_jax' has no attribute {name!r}")
    return getattr(importlib.import_module("lmsi_jax.api"), name)


def _version() -> str:
    """Returns the version of the installed distribution, "0+unknown" of sources on a path alone."""
    from importlib import metadata  # takes longer than all else here

    try:
        return metadata.version("lmsi_jax")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted([*globals(), "__version__", *__all__])
