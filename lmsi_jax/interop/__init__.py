"""Models and data of other libraries: Hugging Face, GGUF, chat templates, SeqIO, T5X."""
