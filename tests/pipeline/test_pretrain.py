"""`lmsi pretrain` from documents to a model to start from; killed; on two processes."""

import json
import shutil

import numpy as np
import pytest
from micro_run import contents, killed_after, snapshot
from several import together

from lmsi_jax.cli.main import main
from lmsi_jax.models.tokenizers import SentencePiece

_RECIPE = """
include 'runs/pretrain.gin'

Pretraining.shares = (('purchases', 1.0), ('compare', 0.5))
Pretraining.vocab_documents = 200
ModelConfig.vocab_size = 340
ModelConfig.num_layers = 2
ModelConfig.embed_dim = 24
ModelConfig.num_heads = 4
ModelConfig.num_kv_heads = 2
ModelConfig.head_dim = 6
ModelConfig.mlp_dim = 40
pretrain/Training.steps = 8
pretrain/Training.microbatches = 1
pretrain/Training.sequences_per_prefix = 2
pretrain/Training.sequence_length = 256
pretrain/Training.log_every = 1
pretrain/Training.save_every = 2
pretrain/Optimizer.warmup_steps = 2
"""


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Returns the arguments of `lmsi pretrain` into a folder, with some parameters changed."""
    file = tmp_path_factory.mktemp("recipe") / "micro.gin"
    file.write_text(_RECIPE)

    def make(output, changes=()):
        changed = {"Run.output_dir": str(output), **dict(changes)}
        return [
            *("pretrain", str(file)),
            *(f"--gin.{name}={value!r}" for name, value in changed.items()),
        ]

    return make


@pytest.fixture(scope="module")
def pretrained(words, tmp_path_factory):
    """A finished pre-training."""
    output = tmp_path_factory.mktemp("pretrained") / "run"
    assert main(words(output)) == 0
    return output


def _losses(run):
    lines = (run / "round_0" / "pretrain" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_it_learns_and_leaves_a_tokenizer_that_reads_its_documents(pretrained):
    losses = _losses(pretrained)
    assert len(losses) == 8 and losses[-1] < losses[0]
    tokenizer = SentencePiece(str(pretrained / "round_0" / "pretrain" / "tokenizer.model"))
    text = "Q: Ann has 13 pens.\nA: 1 + 2 = 3.\n\n"
    assert tokenizer.vocab_size == 340 and tokenizer.decode(tokenizer.encode(text)) == text


def test_with_damaged_metrics_it_is_trained_again_to_the_same_bytes(pretrained, words, tmp_path):
    shutil.copytree(pretrained, tmp_path / "run")
    file = tmp_path / "run" / "round_0" / "pretrain" / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    assert main(words(tmp_path / "run")) == 0
    assert contents(tmp_path / "run") == contents(pretrained)


def test_a_run_starts_from_it(pretrained, gin_file, tmp_path):
    folder = pretrained / "round_0" / "pretrain"
    changes = {
        "Run.output_dir": str(tmp_path / "run"),
        "Run.init_checkpoint": str(folder / "params"),
        "Run.tokenizer": str(folder / "tokenizer.model"),
    }
    changes["ModelConfig.vocab_size"] = 340
    flags = [f"--gin.{name}={value!r}" for name, value in changes.items()]
    assert main(["sample", gin_file, *flags]) == 0


@pytest.mark.parametrize("size", [100, 30_000])
def test_a_vocabulary_that_the_documents_do_not_give_is_named(words, tmp_path, capsys, size):
    assert main(words(tmp_path / "run", {"ModelConfig.vocab_size": size})) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"no tokenizer of ModelConfig.vocab_size = {size}" in error
    assert "change ModelConfig.vocab_size or Pretraining.vocab_documents" in error


def test_finished_it_is_not_done_again(words, pretrained):
    before = snapshot(pretrained / "round_0")
    assert main(words(pretrained)) == 0
    assert snapshot(pretrained / "round_0") == before


@pytest.mark.slow
@pytest.mark.parametrize("saves", [1, 3])
def test_killed_between_its_checkpoints_it_goes_on_to_the_same_bytes(
    words, pretrained, tmp_path, saves
):
    output = tmp_path / "run"
    killed_after(words(output), "training.checkpoints", "Checkpoints.save", saves)
    assert not (output / "round_0" / "pretrain" / "stage.json").exists()
    assert main(words(output)) == 0
    assert contents(output) == contents(pretrained)


@pytest.mark.slow
def test_on_the_devices_of_two_processes_it_is_that_of_one(words, tmp_path):
    mesh = {
        "pretrain/Training.data": 2,
        "pretrain/Training.model": 2,
        "pretrain/Training.fsdp": True,
    }
    for name, count, each in (("one", 1, 4), ("two", 2, 2)):
        codes, errors = together(words(tmp_path / name, mesh), count, devices=each)
        assert codes == [0] * count, errors
    np.testing.assert_allclose(_losses(tmp_path / "two"), _losses(tmp_path / "one"), rtol=1e-5)
    digests = [
        (tmp_path / name / "round_0" / "pretrain" / "digest.json").read_bytes()
        for name in ("one", "two")
    ]
    assert digests[0] == digests[1]
