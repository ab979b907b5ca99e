"""What `lmsi aot` compiles is what a run computes: arguments of the same shapes and types."""

import jax
import numpy as np
import pytest
from sample_all import sample_all

from lmsi_jax.config import Decoding, ModelConfig, Sampling, Training
from lmsi_jax.models.sharding import DeviceMesh
from lmsi_jax.models.tokenizers import SentencePiece
from lmsi_jax.models.transformer import init_params
from lmsi_jax.rollout import decode_step
from lmsi_jax.rollout import engine as engine_module
from lmsi_jax.rollout.engine import Engine
from lmsi_jax.tools.aot_report import Lengths, decode_arguments, train_program
from lmsi_jax.training import packing
from lmsi_jax.training.packing import batch_shape
from lmsi_jax.training.trainer import start

_CONFIG = ModelConfig(
    vocab_size=320, num_layers=2, embed_dim=24, num_heads=4, num_kv_heads=2, head_dim=6,
    mlp_dim=40, max_length=256, windows=(0, 9),
)  # fmt: skip


def _shapes(tree):
    return jax.tree.map(lambda a: (np.shape(a), str(a.dtype)), tree)


@pytest.mark.parametrize("prefix", ["", "Q: 1 + 1?\nA: 2.\n"])
def test_a_decode_chunk_is_compiled_for_the_engine_s_own_arguments(
    prefix, tokenizer_path, monkeypatch
):
    tokenizer, given = SentencePiece(tokenizer_path), []
    decode = decode_step.decode_chunk

    def noted(*arguments):
        given.append(_shapes(arguments[1:]))
        return decode(*arguments)

    monkeypatch.setattr(engine_module, "decode_chunk", noted)
    decoding = Decoding(slots=6, chunk=2, page=4, adaptive_batch=False)
    sampling = Sampling(num_samples=3, max_new_tokens=9, stop=())
    engine = Engine(_CONFIG, init_params(_CONFIG, jax.random.key(0)), tokenizer, decoding)
    question = "Q: Ann has 3 pens, Ben has 4."
    sample_all(engine, prefix, [("q", question)], sampling, seed=1, round_index=0)
    lengths = Lengths(
        prompt=len(tokenizer.encode(prefix)),
        question=len(tokenizer.encode(question)),
    )
    assert (
        _shapes(decode_arguments(_CONFIG, decoding, sampling, lengths, DeviceMesh())) == given[-1]
    )


def test_a_step_is_compiled_for_the_trainer_s_own_arguments():
    training = Training(
        steps=1, microbatches=2, sequences_per_prefix=3, sequence_length=16, max_prefix_length=5
    )
    rows = [packing.weighted_row((3, 4), [5, 6], [7, 8], 1.0)] * 200
    batch = next(packing.batches(iter(rows), batch_shape(training)))
    params, state = start(_CONFIG, training, init_params(_CONFIG, jax.random.key(0)))
    lowered = train_program(_CONFIG, training, jax.devices())
    (arguments, _) = lowered.in_avals
    assert _shapes(arguments) == _shapes((params, state, batch))
