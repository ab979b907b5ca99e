"""Formats of other libraries: Hugging Face's model folders, GGUF files, chat templates, T5X."""
