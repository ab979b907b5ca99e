"""google-tunix's sampler on its own Llama: python -m bench.peers.tunix_sampler --workload=A

It takes texts and has no samples per prompt: each prompt is given once for each of its samples.
Texts are token ids with spaces between them. Its loop runs until its last row has ended; where
lengths differ, a subclass ends each group's loop at the group's longest.
"""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.peers.measure import Ready, groups, main, parser, require, require_shape
from bench.workloads import MODEL, Model, Workload, prompts


class Numbers:
    """A tokenizer whose texts are token ids; no text ends by itself."""

    def encode(self, text: str) -> list[int]:
        """ "5 7" -> [5, 7]."""
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        """[5, 7] -> "5 7"."""
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        """0: none is put before a text."""
        return 0

    def eos_id(self) -> int:
        """An id that is never drawn."""
        return MODEL.vocabulary

    def pad_id(self) -> int:
        """The id that pads; prompts do not contain it."""
        return 0


def llama(model: Model) -> Any:
    """tunix's Llama of a shape, with random weights."""
    from flax import nnx
    from tunix.models.llama3 import model as llama3

    config = llama3.ModelConfig(
        num_layers=model.layers,
        vocab_size=model.vocabulary,
        embed_dim=model.width,
        hidden_dim=model.mlp,
        num_heads=model.heads,
        head_dim=model.head_dim,
        num_kv_heads=model.heads,
        rope_theta=10_000,
        norm_eps=1e-6,
        weight_tying=True,
    )
    return llama3.Llama3(config, rngs=nnx.Rngs(0))


def _sampler(model: Any, workload: Workload) -> Any:
    """A sampler whose loop ends after `.longest` tokens, a number that may change between calls."""
    from tunix.generate import sampler

    class Ending(sampler.Sampler):
        longest = workload.max_new

        def _sample(self, *args: Any, **kwargs: Any) -> Any:
            """Ends every row at the group's longest; the number is asked of the host."""
            state = super()._sample(*args, **kwargs)
            if workload.even:
                return state
            shape = jax.ShapeDtypeStruct((), jnp.int32)
            longest = jax.pure_callback(lambda: np.int32(self.longest), shape)
            drawn = state.decoding_step + 1 - state.num_input_tokens
            return dataclasses.replace(state, done=state.done | (drawn >= longest))

    size = workload.prompt + workload.max_new
    cache = sampler.CacheConfig(
        cache_size=size,
        num_layers=MODEL.layers,
        num_kv_heads=MODEL.heads,
        head_dim=MODEL.head_dim,
    )
    return Ending(model, Numbers(), cache)


def prepare(workload: Workload, options: argparse.Namespace) -> Ready:
    """Builds the sampler."""
    require("tunix", remedy="pip install google-tunix")
    require_shape(workload, MODEL)
    sampler, parts = _sampler(llama(MODEL), workload), groups(workload, options.group)
    texts = [Numbers().decode(row.tolist()) for row in prompts(workload)]

    def decode(part: range, seed: int, longest: int) -> None:
        sampler.longest = longest
        sampler(
            [texts[q] for q in part for _ in range(workload.samples)],
            max_generation_steps=workload.max_new,
            max_prompt_length=workload.prompt,
            temperature=workload.temperature,
            top_p=1.0,
            top_k=0,
            seed=seed,
        )

    def run(seed: int) -> tuple[int, ...]:
        for part in parts:
            longest = max(length for q in part for length in workload.of_question(q))
            decode(part, seed, longest)
        return workload.lengths

    def warm_up() -> None:
        """Compiles."""
        for size in {len(part) for part in parts}:
            decode(range(size), 0, 2)

    return Ready(
        run=run,
        warm_up=warm_up,
        packages=("google-tunix", "jax", "jaxlib", "flax"),
        notes=["each sample prefills its own copy of the prompt; waits for the longest sample"],
        settings={"questions_at_once": len(parts[0])},
    )


if __name__ == "__main__":
    main("tunix_sampler", prepare, parser(__doc__))
