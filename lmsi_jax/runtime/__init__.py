"""Files and stages on disk, processes and signals, progress on the terminal."""
