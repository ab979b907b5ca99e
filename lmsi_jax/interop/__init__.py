"""Models and data of other libraries: Hugging Face folders, SeqIO vocabularies, T5X."""
