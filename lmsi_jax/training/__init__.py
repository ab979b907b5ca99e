"""Fine-tuning: packed batches, weighted losses, optimisers, the trainer and its checkpoints."""
