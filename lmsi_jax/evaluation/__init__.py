"""Evaluation: accuracy with its intervals and tests, and the collapse monitor. PURE."""
