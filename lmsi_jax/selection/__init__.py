"""Judge voted samples: which of them training may learn, and with which weight."""

# Importing this module registers the filters of `lmsi_jax.config` with `rows.judge`.
from lmsi_jax.selection import filters, soft_votes

__all__ = ["filters", "soft_votes"]
