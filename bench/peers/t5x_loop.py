"""T5X's decode loop: python -m bench.peers.t5x_loop --workload=A

`decoding.temperature_sample` through `models.DecoderOnlyModel`, as T5X's infer calls them, around
our decoder in its adapter. The loop runs until its last sample has ended. Where lengths
differ, each sample is made to end at its own by leaving the end token as the only choice.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.peers.lmsi import config_of
from bench.peers.measure import Ready, groups, main, parser, require
from bench.workloads import Workload, prompts
from lmsi_jax.interop import t5x as lmsi_t5x

_REMEDY = "install T5X from its GitHub repository (bench/README.md)"
_MASKED = -1e9


def _decode_fn(model: Any, workload: Workload) -> Callable[..., jax.Array]:
    """Jits decoding of a group: (params, prompts, lengths, key) -> [questions, samples, tokens]."""
    end = workload.model.vocabulary if workload.even else 1

    def decode(params: Any, rows: jax.Array, lengths: jax.Array, key: jax.Array) -> jax.Array:
        def force(logits: jax.Array, state: Any) -> jax.Array:
            """Allows the end token where a sample's length is reached, and only there."""
            last = (state.step == lengths - 1)[:, None]
            return jnp.where(last == (jnp.arange(logits.shape[-1]) == end), logits, _MASKED)

        # 0, which starts a text and pads it; the prompt; room for the new tokens.
        inputs = jnp.pad(rows, ((0, 0), (1, workload.max_new - 1)))
        seen = jnp.broadcast_to(jnp.arange(inputs.shape[1]) <= workload.prompt, inputs.shape)
        batch = {
            "decoder_input_tokens": inputs,
            "decoder_causal_attention": seen.astype(jnp.int32),
        }
        settings = {"temperature": workload.temperature, "topk": 0, "eos_id": end}
        if not workload.even:
            settings["logit_callback_fn"] = force
        decodes, _ = model.predict_batch_with_aux(
            params,
            batch,
            rng=key,
            return_all_decodes=True,
            num_decodes=workload.samples,
            decoder_params=settings,
        )
        return decodes[:, :, : workload.max_new]

    return jax.jit(decode)


def _check(decodes: np.ndarray, lengths: np.ndarray) -> None:
    """Compares lengths, end token included; T5X returns samples in the order of their scores."""
    for found, wanted in zip(decodes, lengths, strict=True):
        ends = np.where((found == 1).any(-1), (found == 1).argmax(-1) + 1, found.shape[-1])
        if sorted(ends) != sorted(wanted):
            raise RuntimeError(f"T5X's samples have {sorted(ends)} tokens, not {sorted(wanted)}")


def prepare(workload: Workload, options: argparse.Namespace) -> Ready:
    """Builds T5X's model."""
    require("t5x", "tensorboard", remedy=_REMEDY)
    lmsi_t5x.install()
    import seqio
    from t5x import models

    from lmsi_jax.interop.t5x import T5XDecoder

    vocabulary = seqio.PassThroughVocabulary(workload.model.vocabulary)
    model = models.DecoderOnlyModel(
        T5XDecoder(config_of(workload.model, workload.prompt + workload.max_new)),
        vocabulary,
        optimizer_def=None,
    )
    shapes = {"decoder_input_tokens": (1, 8)}
    types = {"decoder_input_tokens": jnp.int32}
    params = model.get_initial_variables(jax.random.key(0), shapes, types)["params"]
    decode = _decode_fn(model, workload)
    rows = prompts(workload)
    parts = groups(workload, options.group)
    lengths = np.reshape(workload.lengths, (workload.questions, workload.samples))

    def warm_up() -> None:
        """Compiles; where lengths are an argument, short ones do."""
        for size in {len(part) for part in parts}:
            short = np.minimum(lengths[:size], 2).reshape(-1)
            decode(params, rows[:size], short, jax.random.PRNGKey(0)).block_until_ready()

    def run(seed: int) -> tuple[int, ...]:
        for number, part in enumerate(parts):
            key = jax.random.fold_in(jax.random.PRNGKey(seed), number)
            at = slice(part.start, part.stop)
            decodes = np.asarray(decode(params, rows[at], lengths[at].reshape(-1), key))
            if not workload.even:
                _check(decodes, lengths[at])
        return workload.lengths

    return Ready(
        run=run,
        warm_up=warm_up,
        packages=("t5x", "jax", "jaxlib", "flax"),
        notes=["no prefix is shared between samples; the loop waits for its longest sample"],
        settings={"questions_at_once": len(parts[0])},
    )


if __name__ == "__main__":
    main("t5x_loop", prepare, parser(__doc__))
