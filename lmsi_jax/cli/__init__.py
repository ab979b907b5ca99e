"""Run the `lmsi` command."""
