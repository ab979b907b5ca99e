"""lmsi_jax: language models improve their own reasoning without labels, in JAX."""

__version__ = "0.1.0"
