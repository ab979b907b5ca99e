"""Benchmarks of results and speed, beside other systems. See README.md."""
