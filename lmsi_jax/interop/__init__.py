"""Formats of other libraries: GGUF files and chat templates."""
