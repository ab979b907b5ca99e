"""Imported models, once a session."""
