"""Measurements: what this code does, and how fast, beside what others do. See README.md."""
