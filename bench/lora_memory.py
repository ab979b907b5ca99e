"""Memory of a training step, with and without adapters, as XLA plans it; nothing is run.

    python bench/lora_memory.py

Arguments are parameters, optimiser state and batch; temporaries are activations and gradients.
"""

from lmsi_jax.config import MATRICES, Lora, ModelConfig, Training
from lmsi_jax.models.transformer import parameter_shapes
from lmsi_jax.training.packing import batch_shape, batches, weighted_row
from lmsi_jax.training.trainer import state_shapes, train_step

CONFIG = ModelConfig(
    vocab_size=8192, num_layers=4, embed_dim=512, num_heads=8, head_dim=64, mlp_dim=2048
)
ADAPTERS = {
    "none": None,
    "query, value": Lora(),
    "every matrix": Lora(targets=MATRICES),
}


def megabytes(lora: Lora | None) -> tuple[float, float]:
    """Returns (arguments, temporaries) of a step, in MB."""
    training = Training(
        microbatches=2, sequences_per_prefix=2, sequence_length=128, max_prefix_length=16, lora=lora
    )
    row = weighted_row((3,) * 8, [5] * 10, [6] * 100, 1.0)
    batch = next(batches([row] * 400, batch_shape(training)))
    params = parameter_shapes(CONFIG)
    given = (params, state_shapes(training, params), batch)
    found = train_step.lower(CONFIG, training, 1, *given).compile().memory_analysis()
    return found.argument_size_in_bytes / 1e6, found.temp_size_in_bytes / 1e6


def main() -> None:
    """Prints a row for each way."""
    print(f"{CONFIG.parameter_count:,} parameters, MB")
    for name, lora in ADAPTERS.items():
        arguments, temporaries = megabytes(lora)
        print(f"{name:>14}: arguments {arguments:.0f}, temporaries {temporaries:.0f}", flush=True)


if __name__ == "__main__":
    main()
