"""The tasks: one module per data set with its questions, its answer kind and its exemplars.

Nothing is registered at import time; `lmsi_jax.tasks.registry.register()` adds the SeqIO tasks.
The package is `lmsi_jax.tasks`: `lmsi_jax/tasks` is a link to this folder.
"""
