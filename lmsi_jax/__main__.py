"""Run the `lmsi` command as `python -m lmsi_jax`."""

import sys

from lmsi_jax.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command())
