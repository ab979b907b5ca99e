"""Hugging Face's model folders, in and out: config.json, safetensors, tokenizer files."""
