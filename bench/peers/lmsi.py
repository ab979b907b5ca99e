"""Ours, through `lmsi_jax.decoding.engine.Engine`: python -m bench.peers.lmsi --workload=A

Texts are token ids with spaces between them, so that every prompt has exactly the wanted length.
"""

import argparse
from collections.abc import Sequence

from bench.peers.measure import Ready, main, parser
from bench.workloads import MODEL, Workload, prompts
from lmsi_jax.decoding.engine import Engine
from lmsi_jax.decoding.sampling import Sampling
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.decoder import fresh_params

_NEVER = -7  # as the end's id: no path ends by chance


class Numbers:
    """A tokenizer whose texts are the token ids themselves."""

    vocab_size = MODEL.vocabulary
    eos_id = _NEVER

    def encode(self, text: str) -> list[int]:
        """ "5 7" -> [5, 7]."""
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        """[5, 7] -> "5 7"."""
        return " ".join(str(int(i)) for i in ids)


def _config(workload: Workload) -> ModelConfig:
    return ModelConfig(
        vocab_size=MODEL.vocabulary,
        num_layers=MODEL.layers,
        embed_dim=MODEL.width,
        num_heads=MODEL.heads,
        num_kv_heads=MODEL.heads,
        head_dim=MODEL.head_dim,
        mlp_dim=MODEL.mlp,
        max_length=workload.prompt + workload.max_new,
    )


def prepare(workload: Workload, options: argparse.Namespace) -> Ready:
    """Builds the engine; the task prompt is prefilled anew in each run."""
    config = _config(workload)
    params, tokenizer = fresh_params(config, 0), Numbers()
    rows = prompts(MODEL, workload)
    prefix = tokenizer.decode(rows[0, : workload.shared])
    texts = [tokenizer.decode(row[workload.shared :]) for row in rows]
    questions = [(f"question {i}", text) for i, text in enumerate(texts)]
    sampling = Sampling(
        paths=workload.samples,
        temperature=workload.temperature,
        max_new_tokens=workload.max_new,
        stop=(),
    )
    lanes = options.lanes or workload.samples * workload.questions
    engine = Engine(config, params, tokenizer, lanes=lanes)
    group = engine.questions_per_group(sampling)

    def run(seed: int) -> list[int]:
        engine._prompt = None  # the prompt's prefill belongs to the run
        drawn: list[int] = []
        for i in range(0, len(questions), group):
            part = questions[i : i + group]
            paths = engine.generate(prefix, part, sampling, seed=seed, round_index=0)
            drawn += [path.tokens for path in paths]
        return [min(pair) for pair in zip(drawn, workload.lengths, strict=True)]

    notes = [] if workload.even else ["no forced lengths: every path is decoded to the cap"]
    return Ready(
        run=run, packages=("lmsi_jax", "jax", "jaxlib"), notes=notes, settings={"lanes": lanes}
    )


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument("--lanes", type=int, default=0, help="0: one for every path")
    main("lmsi", prepare, flags)
