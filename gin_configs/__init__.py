"""The packaged gin files: `runs/` (what `lmsi run NAME` finds) and `models/`, which runs use."""
