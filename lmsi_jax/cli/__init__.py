"""The `lmsi` command."""
