"""The model that ships with the package: complete, small, and able to reason a little."""

import json

import pytest
from sample_all import sample_all

from lmsi_jax.answers import key, path_key
from lmsi_jax.config import Decoding, Sampling, gin_loader
from lmsi_jax.config.configurables import load_run
from lmsi_jax.models.tokenizers import SentencePiece
from lmsi_jax.models.transformer import parameter_shapes
from lmsi_jax.prompts import build_prompt
from lmsi_jax.rollout.engine import Engine
from lmsi_jax.runtime.files import embedded_path
from lmsi_jax.tasks import registry
from lmsi_jax.tasks.task import Family
from lmsi_jax.training.checkpoints import digest, load_params


@pytest.fixture(scope="module")
def config():
    gin_loader.load("quickstart", gin_loader.GinArgs())
    return load_run().model


@pytest.fixture(scope="module")
def params(config):
    return load_params(embedded_path("."), parameter_shapes(config))


@pytest.fixture(scope="module")
def tokenizer():
    return SentencePiece(str(embedded_path("tokenizer.model")))


def test_it_is_the_model_that_its_log_describes(params):
    log = json.loads(embedded_path("digest.json").read_text())
    assert digest(params) == log["params_sha256"]


def test_its_configuration_is_the_packaged_recipe(config):
    runs = []
    for name in (str(embedded_path("config.gin")), "pretrain"):
        gin_loader.load(name, gin_loader.GinArgs())
        runs.append(load_run())
    own, recipe = runs
    assert own.pretraining == recipe.pretraining and own.seed == recipe.seed
    assert own.model == recipe.model == config


def test_checkpoint_and_tokenizer_take_at_most_12_megabytes():
    def size(folder):
        return sum(size(p) if p.is_dir() else p.stat().length for p in folder.iterdir())

    assert size(embedded_path(".")) <= 12e6


def test_every_task_s_text_survives_its_tokenizer(tokenizer):
    families = [name for name in registry.NAMES if isinstance(registry.get(name), Family)]
    assert len(families) == 9
    for name in families:
        question = registry.get(name).questions("test", "hard", 1, 0)[0]
        assert tokenizer.decode(tokenizer.encode(question.text)) == question.text


@pytest.mark.slow
def test_it_reasons_when_the_exemplars_do_and_answers_at_once_when_they_do_not(
    config, params, tokenizer
):
    engine = Engine(config, params, tokenizer, Decoding(slots=24))
    task = registry.get("travel")
    questions = task.questions("test", "easy", 24, 0)
    greedy = Sampling(num_samples=1, temperature=0.0, max_new_tokens=64)
    right, lengths = {}, {}
    for prompt_style in ("standard", "cot", "zero_shot_cot"):
        prompts = [build_prompt(question, task.exemplars(), prompt_style) for question in questions]
        done = sample_all(
            engine,
            prompts[0][0],
            [(q.uid, text) for q, (_, text) in zip(questions, prompts, strict=True)],
            greedy,
            seed=0,
            round_index=0,
        )
        samples = [done[question.uid][0] for question in questions]
        found = [path_key(sample.text, "number") for sample in samples]
        right[prompt_style] = sum(
            a == key(q.gold, "number") for a, q in zip(found, questions, strict=True)
        )
        lengths[prompt_style] = sum(sample.tokens for sample in samples) / len(samples)
    assert right["cot"] >= 12
    assert right["zero_shot_cot"] >= 12
    assert right["standard"] <= right["cot"] - 6
    assert lengths["standard"] < 12 < lengths["cot"]
