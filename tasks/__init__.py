"""The tasks: modules of related data sets, each with its parser, answer kind and exemplars.

Nothing is registered at import time; `lmsi_jax.tasks.registry.register()` adds the SeqIO tasks.
The package is `lmsi_jax.tasks`: `lmsi_jax/tasks` is a link to this folder.
"""
