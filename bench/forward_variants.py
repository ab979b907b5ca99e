"""Optimizer steps with and without a variant of the forward pass: python -m bench.forward_variants

    python -m bench.forward_variants                    # features first, on CPUs
    python -m bench.forward_variants --devices=2        # prefix and rows as one array

Both programs are compiled in one process and run in turn, so that a busy machine slows both. Prints
one JSON object for each case: the fastest step of each, and the median over the turns of (general
path / variant). With --devices the mesh is one of virtual devices, "data" alone.
"""

import argparse
import json
import os
import time

_SMALL = {  # lmsi_jax/gin_configs/models/embedded.gin
    "vocab_size": 1024, "num_layers": 4, "embed_dim": 128, "num_heads": 4, "num_kv_heads": 1,
    "head_dim": 32, "mlp_dim": 512,
}  # fmt: skip
_LARGER = {
    "vocab_size": 8192, "num_layers": 8, "embed_dim": 512, "num_heads": 8, "num_kv_heads": 1,
    "head_dim": 64, "mlp_dim": 2048,
}  # fmt: skip
# Name -> model, microbatches, tokens of a sequence, tokens of the prefix.
CASES = {
    "embedded": (_SMALL, 4, 384, 320),
    "embedded, no prefix": (_SMALL, 4, 384, 0),
    "34 M": (_LARGER, 1, 512, 320),
    "34 M, no prefix": (_LARGER, 1, 512, 0),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=1, help="virtual devices of the mesh")
    parser.add_argument("--turns", type=int, default=15, help="steps of each program")
    parser.add_argument("--case", choices=CASES, help="by default all")
    options = parser.parse_args()
    flags = os.environ.get("XLA_FLAGS", "")
    if options.devices > 1:  # before JAX starts
        count = f"--xla_force_host_platform_device_count={options.devices}"
        os.environ["XLA_FLAGS"] = f"{flags} {count}"
    for name in [options.case] if options.case else CASES:
        print(
            json.dumps({"case": name} | measure(name, options.devices, options.turns)), flush=True
        )


def measure(name: str, devices: int, turns: int) -> dict[str, float]:
    """Returns the milliseconds of both programs and their ratio."""
    import numpy as np

    from lmsi_jax.config import ModelConfig, Training
    from lmsi_jax.training import forward
    from lmsi_jax.training.packing import batch_shape, batches, weighted_row

    model, microbatches, length, prefix_length = CASES[name]
    config = ModelConfig(**model)
    training = Training(
        microbatches=microbatches,
        sequences_per_prefix=4,
        sequence_length=length,
        max_prefix_length=prefix_length,
        data=devices,
    )
    rng = np.random.default_rng(0)

    def tokens(least: int, most: int) -> list[int]:
        return rng.integers(3, 1000, rng.integers(least, most)).tolist()

    prefix = tokens(prefix_length, prefix_length + 1)
    rows = (weighted_row(prefix, tokens(20, 60), tokens(40, 120), 1.0) for _ in range(10_000))
    batch = next(batches(rows, batch_shape(training)))

    door = (forward, "supports_mesh_layout") if devices > 1 else (forward, "supports_feature_major")
    variant = _program(config, training, batch)
    supports = getattr(*door)
    setattr(*door, lambda *_: False)
    try:
        general = _program(config, training, batch)
    finally:
        setattr(*door, supports)

    seconds: dict[str, list[float]] = {"variant": [], "general": []}
    programs = {"variant": variant, "general": general}
    for turn in range(turns):
        for key in sorted(programs, reverse=bool(turn % 2)):
            start = time.perf_counter()
            programs[key]()
            seconds[key].append(time.perf_counter() - start)
    ratios = np.array(seconds["general"]) / np.array(seconds["variant"])
    fastest = {f"{key}_ms": round(1000 * min(each)) for key, each in seconds.items()}
    return fastest | {"general_over_variant": round(float(np.median(ratios)), 3)}


def _program(config, training, batch):
    """Compiles a step; returns a function that takes it, once it has taken one."""
    import jax

    from lmsi_jax.models.sharding import make_training_mesh, shard_batch
    from lmsi_jax.models.transformer import fresh_params
    from lmsi_jax.training.trainer import start, train_step

    jax.clear_caches()  # or the other program's trace would be used
    params, state = start(config, training, fresh_params(config, 0))
    placed = shard_batch(make_training_mesh(training), batch)
    compiled = train_step.lower(config, training, 1, params, state, placed).compile()

    def step() -> None:
        nonlocal params, state
        params, state, _ = compiled(params, state, placed)
        jax.block_until_ready((params, state))

    step()
    return step


if __name__ == "__main__":
    main()
