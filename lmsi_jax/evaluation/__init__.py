"""Evaluation: accuracy before and after, its intervals and tests, and how sure the votes are."""
