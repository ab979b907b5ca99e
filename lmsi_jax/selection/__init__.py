"""Judge voted paths: which ones training may learn, and with which weight."""

# Importing these modules registers the filters of `lmsi_jax.config` with `rows.judge`.
from lmsi_jax.selection import filters, importance

__all__ = ["filters", "importance"]
