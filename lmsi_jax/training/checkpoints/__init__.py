"""Checkpoints in the layout that T5X reads and writes: `checkpoint_N/state`, through Orbax.

    checkpoint_N/state      {"target": params, "state": {"step": int32, "param_states": ...}}
    checkpoint_N/reading    JSON: where the data stood at step N; T5X looks at `state` alone

The optimiser's arrays are kept by their path in the Optax state, so a restored run goes on exactly.
`saving` writes a run's checkpoints, `stored` reads what anybody wrote, `layout` knows the folders
and the names in them, `refusals` says what is wrong with one.
"""

from lmsi_jax.training.checkpoints.layout import drop, find, has_reading, present
from lmsi_jax.training.checkpoints.saving import Checkpoints
from lmsi_jax.training.checkpoints.stored import (
    attempt,
    digest,
    holders,
    load_params,
    load_state,
    opened,
    optimizer_arrays,
    stored_digest,
)

__all__ = [
    "Checkpoints",
    "attempt",
    "digest",
    "drop",
    "find",
    "has_reading",
    "holders",
    "load_params",
    "load_state",
    "opened",
    "optimizer_arrays",
    "present",
    "stored_digest",
]
