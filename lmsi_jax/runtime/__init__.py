"""Files, processes, progress."""
