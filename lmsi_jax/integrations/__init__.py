"""Connects runs to services of others: experiment trackers, evaluation harnesses, the hub."""
