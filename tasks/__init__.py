"""The tasks: one module per data set with its questions, its answer kind and its exemplars.

Nothing is registered at import time; `lmsi_jax.tasks.registry.register()` adds the SeqIO tasks.
"""

if __name__ != "lmsi_jax.tasks":
    raise ImportError(
        "import this package as lmsi_jax.tasks, its one name, so that no task is registered twice"
    )
