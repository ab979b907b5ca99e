"""google-tunix's PeftTrainer on its own Llama: python -m bench.peers.tunix_train --workload=train

All weights are trained: without LoRA parameters in the model the trainer takes the whole of it.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench import steps as adamw
from bench.peers.llama_weights import draw
from bench.peers.measure import require
from bench.peers.measure_steps import Ready, main, microbatches, parser
from bench.peers.tunix_sampler import llama
from bench.steps import Steps
from bench.workloads import Model


def _set_weights(made: Any, model: Model) -> None:
    """Puts `draw`'s weights into tunix's Llama, whose attention has an axis of heads."""
    embedding, layers = draw(model)
    made.embedder.input_embedding.value = jnp.asarray(embedding)
    heads = (model.width, model.heads, model.head_dim)
    for layer, drawn in zip(made.layers, layers, strict=True):
        for part in "qkv":
            getattr(layer.attn, f"{part}_proj").w.value = jnp.asarray(drawn[part].reshape(heads))
        outward = drawn["o"].reshape(model.heads, model.head_dim, model.width)
        layer.attn.o_proj.w.value = jnp.asarray(outward)
        for part in ("gate", "up", "down"):
            getattr(layer.mlp, f"{part}_proj").kernel.value = jnp.asarray(drawn[part])


def _trainer(steps: Steps, parts: int) -> Any:
    """A trainer that keeps each microbatch's loss in `.losses`."""
    import optax
    from tunix.models.llama3 import model as llama3
    from tunix.sft import peft_trainer

    class Keeping(peft_trainer.PeftTrainer):
        losses: list[jax.Array] = []

        def _post_process_train_step(self, aux: Any) -> None:
            self.losses.append(aux)

    @functools.wraps(peft_trainer._default_loss_fn)  # its arguments' names are looked at
    def loss_fn(*args: Any, **inputs: Any) -> tuple[jax.Array, jax.Array]:
        """tunix's own loss, as what is learnt and as what is kept."""
        loss = peft_trainer._default_loss_fn(*args, **inputs)
        return loss, loss

    # Its attention does not pass `rope_theta` on, whose default is another than the peers' base.
    llama3.apply_rope.__defaults__ = (10_000,)
    made = llama(steps.model)
    _set_weights(made, steps.model)
    optimizer = optax.adamw(
        adamw.LEARNING_RATE,
        b1=adamw.B1,
        b2=adamw.B2,
        eps=adamw.EPSILON,
        weight_decay=adamw.WEIGHT_DECAY,
    )
    config = peft_trainer.TrainingConfig(
        eval_every_n_steps=1 << 30,
        gradient_accumulation_steps=parts if parts > 1 else None,
    )
    trainer = Keeping(made, optimizer, config).with_loss_fn(loss_fn, has_aux=True)
    trainer.is_managed_externally = True  # so that `train` may be called for each step
    return trainer


def _inputs(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the inputs of tunix's loss: no padding, causal attention."""
    rows, length = tokens.shape
    causal = np.tril(np.ones((length, length), bool))
    return {
        "input_tokens": tokens,
        "input_mask": np.ones(tokens.shape, bool),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape),
        "attention_mask": np.broadcast_to(causal, (rows, length, length)),
    }


def prepare(steps: Steps, options: argparse.Namespace) -> Ready:
    """Builds the trainer."""
    require("tunix", remedy="pip install google-tunix")
    from flax import nnx

    parts = microbatches(steps, options)
    trainer = _trainer(steps, parts)

    def step(tokens: np.ndarray) -> float:
        trainer.losses.clear()
        trainer.train([_inputs(rows) for rows in np.array_split(tokens, parts)])
        jax.block_until_ready(nnx.state(trainer.model))
        return float(np.mean(trainer.losses))

    return Ready(
        step=step,
        same_weights=True,
        packages=("google-tunix", "jax", "jaxlib", "flax", "optax"),
        settings={"microbatches": parts},
    )


if __name__ == "__main__":
    main("tunix", prepare, parser(__doc__, microbatches=1))
