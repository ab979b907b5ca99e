"""Our decoder within T5X: the same scores, decodes, training and checkpoints, both ways."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import of_family
from flax.core import freeze, unfreeze
from path_scores import sharp_params

from lmsi_jax.config import Optimizer, Training
from lmsi_jax.interop import t5x as lmsi_t5x
from lmsi_jax.interop.t5x import T5XDecoder
from lmsi_jax.models.attention import packed_attention
from lmsi_jax.models.transformer import Decoder, init_params
from lmsi_jax.training import packing
from lmsi_jax.training.checkpoints import Checkpoints, load_params
from lmsi_jax.training.metrics import read_metrics
from lmsi_jax.training.optimizers import learning_rate_schedule, transformation
from lmsi_jax.training.trainer import train

if reason := lmsi_t5x.missing():
    pytest.skip(reason, allow_module_level=True)

import seqio
from t5x import adafactor, models, optimizers, partitioning, utils
from t5x import checkpoints as t5x_checkpoints
from t5x import trainer as t5x_trainer

TRAINING = Training(
    steps=20,
    optimizer=Optimizer(learning_rate=3e-3, warmup_steps=5, decay="cosine", weight_decay=0.01),
    microbatches=1,
    sequences_per_prefix=3,
    sequence_length=32,
    max_prefix_length=0,
    log_every=1,
    save_every=10,
)


@pytest.fixture(params=["plain", "windows and caps", "qwen3", "gemma3", "parallel, all biases"])
def config(request, micro_config):
    if request.param == "plain":
        return micro_config
    if request.param != "windows and caps":
        return of_family(micro_config, request.param)
    return dataclasses.replace(
        micro_config, windows=(5, 0), attention_softcap=2.0, logits_softcap=3.0
    )


@pytest.fixture
def params(config):
    return sharp_params(config, 3)


def _model(config, optimizer=None):
    return models.DecoderOnlyModel(
        T5XDecoder(config),
        seqio.PassThroughVocabulary(config.vocab_size, eos_id=1),
        optimizer_def=optimizer,
        loss_normalizing_factor="NUM_REAL_TARGET_TOKENS",
    )


def _tokens(rows, length, seed=0):
    return np.random.default_rng(seed).integers(3, 320, (rows, length)).astype(np.int32)


def _ours(config, params, tokens):
    """Scores of whole rows, [B, T, V]."""
    places = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    attend = packed_attention(config, jnp.ones_like(tokens), jnp.asarray(places), None)
    return np.asarray(Decoder(config).apply({"params": params}, tokens, places, attend))


def test_the_parameters_have_the_names_and_axes_of_our_own_tree(micro_config, micro_params):
    variables = _model(micro_config).get_initial_variables(
        jax.random.key(0), {"decoder_input_tokens": (2, 8)}, {"decoder_input_tokens": jnp.int32}
    )
    shapes = jax.tree.map(jnp.shape, jax.device_get(dict(variables["params"])))
    assert shapes == jax.tree.map(jnp.shape, micro_params)
    axes = variables["params_axes"]["layer_0"]["query_axes"].names
    assert axes == ("embed", "joined_kv")


def test_behind_a_start_token_every_token_has_our_scores(config, params):
    tokens = _tokens(3, 12)
    batch = dict.fromkeys(
        ("decoder_input_tokens", "decoder_target_tokens"), np.pad(tokens, ((0, 0), (1, 0)))
    )
    theirs = np.asarray(_model(config)._compute_logits(params, batch))
    np.testing.assert_allclose(theirs[:, 1:], _ours(config, params, tokens), atol=5e-5)


def test_ids_one_higher_give_the_same_scores_one_place_on_and_none_to_padding(config, params):
    tokens = np.concatenate([np.zeros((2, 1), np.int32), _tokens(2, 9)], axis=1)  # 0 is a token
    model = models.DecoderOnlyModel(
        T5XDecoder(config, first_id=1),
        seqio.PassThroughVocabulary(config.vocab_size + 1, eos_id=2),
        optimizer_def=None,
    )
    batch = dict.fromkeys(
        ("decoder_input_tokens", "decoder_target_tokens"), np.pad(tokens + 1, ((0, 0), (1, 0)))
    )
    theirs = np.asarray(model._compute_logits(params, batch))
    np.testing.assert_allclose(theirs[:, 1:, 1:], _ours(config, params, tokens), atol=2e-5)
    assert theirs.shape[-1] == config.vocab_size + 1 and theirs[..., 0].max() < -1e8


def test_packed_examples_have_the_scores_that_each_has_alone(config, params):
    parts = [_tokens(1, length, seed)[0] for seed, length in enumerate((9, 6, 11))]
    inputs = np.concatenate([np.pad(part, (1, 0)) for part in parts] + [np.zeros(3, np.int32)])
    segments = np.concatenate([np.full(len(p) + 1, i + 1) for i, p in enumerate(parts)] + [[0] * 3])
    places = np.concatenate([np.arange(len(part) + 1) for part in parts] + [[0] * 3])
    batch = {
        "decoder_input_tokens": inputs[None],
        "decoder_target_tokens": inputs[None],
        "decoder_segment_ids": segments[None],
        "decoder_positions": places[None],
    }
    theirs = np.asarray(_model(config)._compute_logits(params, batch))[0]
    begin = 1
    for part in parts:
        alone = _ours(config, params, part[None])[0]
        np.testing.assert_allclose(theirs[begin : begin + len(part)], alone, atol=5e-5)
        begin += len(part) + 1


def test_greedy_steps_over_the_cache_are_those_of_whole_forward_passes(config, params):
    lengths, new = (5, 9, 2), 6
    prompts = [_tokens(1, length, seed)[0] for seed, length in enumerate(lengths)]
    room = max(lengths) + 1 + new
    batch = {
        "decoder_input_tokens": np.stack([np.pad(p, (1, room - 1 - len(p))) for p in prompts]),
        "decoder_causal_attention": np.stack(
            [(np.arange(room) <= len(p)).astype(np.int32) for p in prompts]
        ),
    }
    decodes, _ = _model(config).predict_batch_with_aux(
        params,
        batch,
        rng=jax.random.key(0),
        decoder_params={"temperature": 0.0, "topk": 1, "eos_id": 1},
    )
    distinct = set()
    for prompt, found in zip(prompts, np.asarray(decodes), strict=True):
        for token in found[:new]:
            scores = _ours(config, params, prompt[None])[0, -1]
            assert scores[token] > scores.max() - 1e-4
            prompt = np.append(prompt, token).astype(np.int32)
            distinct.add(int(token))
            if token == 1:
                break
    assert len(distinct) > 2


def _rows():
    """Weighted examples of several lengths, endless."""
    rng = np.random.default_rng(1)
    few = [
        packing.weighted_row(
            (),
            rng.integers(3, 300, 3 + i % 4).tolist(),
            rng.integers(3, 300, 5 + i % 3).tolist(),
            0.5 + i % 3,
        )
        for i in range(14)
    ]
    return itertools.cycle(few)


def _features(batch):
    """One of our steps' batches as T5X's features: read behind a start token."""
    one = {name: value[0] for name, value in batch.items()}
    previous = np.pad(one["tokens"], ((0, 0), (1, 0)))[:, :-1]
    return {
        "decoder_target_tokens": one["tokens"],
        "decoder_input_tokens": np.where(one["positions"] == 0, 0, previous),
        "decoder_loss_weights": one["weights"],
        "decoder_segment_ids": one["segments"],
        "decoder_positions": one["positions"],
    }


class _T5X:
    """T5X's trainer on the batches that ours meets."""

    def __init__(self, config, params, folder, settings=TRAINING.optimizer, own=None):
        """`own`: an optimiser of T5X's in place of ours in its wrapper."""
        ours = optimizers.OptaxWrapper(transformation(settings, TRAINING.steps))
        model = _model(config, own or ours)
        stream = packing.batches(_rows(), packing.batch_shape(TRAINING))
        self.batches = [_features(next(stream)) for _ in range(TRAINING.steps)]
        self.partitioner = partitioning.PjitPartitioner(num_partitions=1)
        first = self.batches[0]
        made = utils.TrainStateInitializer(
            optimizer_def=model.optimizer_def,
            init_fn=model.get_initial_variables,
            input_shapes={name: value.shape for name, value in first.items()},
            input_types={name: value.dtype for name, value in first.items()},
            partitioner=self.partitioner,
        )
        state = made.from_scratch(jax.random.PRNGKey(0))
        self.trainer = t5x_trainer.Trainer(
            model,
            state.replace_params(freeze(jax.tree.map(jnp.array, params))),
            self.partitioner,
            eval_names=[],
            summary_dir=None,
            train_state_axes=made.train_state_axes,
            rng=jax.random.PRNGKey(0),
            # Optax has its own; T5X's optimisers get theirs from here.
            learning_rate_fn=learning_rate_schedule(settings, TRAINING.steps),
            num_microbatches=None,
        )
        self.folder = str(folder)

    def train(self, first, last):
        """Losses of the steps from `first` to `last`."""
        losses = []
        for step in range(first, last + 1):
            metrics = self.trainer.train(iter([self.batches[step - 1]]), 1).result()
            losses.append(float(np.asarray(getattr(metrics["loss"], "value", metrics["loss"]))))
        return losses

    def _checkpoints(self):
        return t5x_checkpoints.OrbaxCheckpointManagerInterface(
            self.folder,
            self.trainer.train_state,
            self.partitioner,
            save_dtype=jnp.float32,
            restore_dtype=jnp.float32,
        )

    def save(self):
        manager = self._checkpoints()
        manager.save(self.trainer.train_state)
        manager.close()

    def restore(self, step):
        manager = self._checkpoints()
        self.trainer.train_state = manager.restore(step)
        manager.close()


@pytest.fixture(scope="module")
def ours(tmp_path_factory, micro_config, micro_params):
    """Our trainer's run of 20 steps: its folder and its losses."""
    folder = tmp_path_factory.mktemp("ours")
    train(micro_config, TRAINING, micro_params, _rows(), folder)
    return folder, [line["loss"] for line in read_metrics(folder)]


def test_losses_of_20_steps_follow_t5xs_trainer(ours, tmp_path, micro_config, micro_params):
    losses = _T5X(micro_config, micro_params, tmp_path).train(1, 20)
    assert losses[-1] < losses[0] - 0.3
    np.testing.assert_allclose(ours[1], losses, atol=1e-4)


def test_losses_with_adafactor_follow_t5xs_own_adafactor(tmp_path, micro_config):
    sizes = {"embed_dim": 128, "num_heads": 4, "num_kv_heads": 4, "head_dim": 32, "mlp_dim": 160}
    config = dataclasses.replace(micro_config, **sizes)  # both factor from 128 on
    params = init_params(config, jax.random.key(0))
    optimizer = dataclasses.replace(
        TRAINING.optimizer,
        name="adafactor",
        learning_rate=0.05,
        weight_decay=0.0,
        max_grad_norm=0.0,
    )
    train(config, dataclasses.replace(TRAINING, optimizer=optimizer), params, _rows(), tmp_path)
    ours = [line["loss"] for line in read_metrics(tmp_path)]
    theirs = adafactor.Adafactor(learning_rate=None, decay_rate=0.8, clipping_threshold=1.0)
    losses = _T5X(config, params, tmp_path / "theirs", optimizer, theirs).train(1, 20)
    assert losses[-1] < losses[0] - 0.3
    np.testing.assert_allclose(ours, losses, atol=1e-4)


def test_t5x_goes_on_from_our_checkpoint_with_its_optimiser(
    ours, tmp_path, micro_config, micro_params
):
    with pytest.raises(_Cut):
        train(micro_config, TRAINING, micro_params, _cut(_rows()), tmp_path)
    theirs = _T5X(micro_config, jax.tree.map(jnp.zeros_like, micro_params), tmp_path)
    theirs.restore(10)
    np.testing.assert_allclose(ours[1][10:], theirs.train(11, 20), atol=1e-4)


def test_our_trainer_resumes_a_checkpoint_of_t5xs(ours, tmp_path, micro_config, micro_params):
    theirs = _T5X(micro_config, micro_params, tmp_path)
    theirs.train(1, 10)
    theirs.save()
    saved = load_params(tmp_path, micro_params)
    jax.tree.map(np.testing.assert_array_equal, saved, unfreeze(theirs.trainer.train_state.params))
    assert Checkpoints(tmp_path).latest == 10
    train(micro_config, TRAINING, micro_params, _rows(), tmp_path)
    losses = [line["loss"] for line in read_metrics(tmp_path)]
    np.testing.assert_allclose(losses, ours[1][10:], atol=1e-4)


class _Cut(Exception):
    pass


def _cut(rows):
    """Ends the run between its checkpoints of step 10 and step 20."""
    yield from itertools.islice(rows, 130)
    raise _Cut
