"""Ours, through `lmsi_jax.rollout.engine.Engine`: python -m bench.peers.lmsi --workload=A

Texts are token ids with spaces between them, so that every prompt has exactly the wanted length.
"""

import argparse
import dataclasses
from collections.abc import Sequence

from bench.peers.measure import Ready, add_dtype, main, parser
from bench.workloads import Model, Workload, prompts
from lmsi_jax.config import Decoding, ModelConfig, Sampling
from lmsi_jax.models.transformer import fresh_params
from lmsi_jax.rollout.engine import Engine
from lmsi_jax.rollout.requests import Request

_NEVER = -7  # as the end's id: no sample ends by chance
_LAYOUT = {
    "C": Decoding(
        slots=1024, chunk=16, page=64, prefill_tokens=8192, adaptive_batch=False, dtype="bfloat16"
    )
}


_LAYOUT_FLAGS = {"slots": int, "chunk": int, "page": int, "prefill_tokens": int}


class Numbers:
    """A tokenizer whose texts are the token ids themselves."""

    eos_id = _NEVER
    end_ids = frozenset({_NEVER})
    start_ids: tuple[int, ...] = ()

    def __init__(self, vocabulary: int):
        self.vocab_size = vocabulary

    def encode(self, text: str) -> list[int]:
        """ "5 7" -> [5, 7]."""
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        """[5, 7] -> "5 7"."""
        return " ".join(str(int(i)) for i in ids)


def config_of(model: Model, max_length: int) -> ModelConfig:
    """Our configuration of a shape."""
    return ModelConfig(
        vocab_size=model.vocabulary,
        num_layers=model.layers,
        embed_dim=model.width,
        num_heads=model.heads,
        num_kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        mlp_dim=model.mlp,
        block=model.block,
        max_length=max_length,
    )


def prepare(workload: Workload, options: argparse.Namespace) -> Ready:
    """Builds the engine; the task prompt is prefilled anew in each run."""
    config = config_of(workload.model, workload.prompt + workload.max_new)
    params, tokenizer = fresh_params(config, 0), Numbers(workload.model.vocabulary)
    rows = prompts(workload)
    prefix = tokenizer.decode(rows[0, : workload.shared])
    texts = [tokenizer.decode(row[workload.shared :]) for row in rows]
    sampling = Sampling(
        num_samples=workload.samples,
        temperature=workload.temperature,
        max_new_tokens=workload.max_new,
        stop=(),
    )
    requests = [
        Request(
            uid=f"question {i}",
            prefix=prefix,
            text=text,
            sampling=sampling,
            limits=workload.of_question(i),
        )
        for i, text in enumerate(texts)
    ]
    given = {name: getattr(options, name) for name in (*_LAYOUT_FLAGS, "dtype")}
    layout = dataclasses.replace(
        _LAYOUT.get(workload.name, Decoding()),
        **{name: value for name, value in given.items() if value is not None},
    )
    engine = Engine(config, params, tokenizer, layout)

    def run(seed: int) -> list[int]:
        engine._prompt = None  # the prompt's prefill belongs to the run
        samples = {
            response.number: response.samples
            for response in engine.generate(requests, seed=seed, round_index=0)
        }
        return [sample.tokens for number in range(len(requests)) for sample in samples[number]]

    return Ready(
        run=run,
        packages=("lmsi_jax", "jax", "jaxlib"),
        notes=[],
        settings={name: getattr(layout, name) for name in (*_LAYOUT_FLAGS, "dtype")},
    )


if __name__ == "__main__":
    flags = add_dtype(parser(__doc__))
    for name, kind in _LAYOUT_FLAGS.items():
        flags.add_argument(f"--{name}", type=kind, help=f"Decoding.{name}; by workload")
    main("lmsi", prepare, flags)
