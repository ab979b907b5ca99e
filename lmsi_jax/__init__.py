"""lmsi_jax: language models improve their own reasoning without labels, in JAX."""

import pathlib as _pathlib

__version__ = "0.1.0"

# In a checkout the folders `tasks/` and `gin_configs/` stand beside this package; in a wheel they
# lie inside it. Either way their one import name is `lmsi_jax.tasks` and `lmsi_jax.gin_configs`.
_checkout = _pathlib.Path(__file__).resolve().parent.parent
if (_checkout / "setup.py").is_file() and (_checkout / "gin_configs").is_dir():
    __path__.append(str(_checkout))
