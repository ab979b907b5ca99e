"""`lmsi pretrain` from documents to a model to start from; killed; on two processes."""

import contextlib
import json
import shutil

import jax
import numpy as np
import pytest
from micro_run import contents, killed_after, snapshot
from several import together

import lmsi_jax
from lmsi_jax.cli.main import main
from lmsi_jax.models.tokenizers import SentencePiece
from lmsi_jax.training.checkpoints import Checkpoints
from lmsi_jax.training.trainer import train_step

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


@pytest.fixture(scope="module")
def taught(pretrained, tmp_path_factory):
    """Arguments of a pre-training that the finished one teaches for three steps, but its folder."""
    folder = pretrained / "round_0" / "pretrain"
    file = tmp_path_factory.mktemp("taught") / "taught.gin"
    file.write_text(
        _RECIPE
        + f"""
Run.tokenizer = '{folder}/tokenizer.model'
Pretraining.teacher = '{folder}/params'
Pretraining.teacher_model = @teacher/ModelConfig()
teacher/ModelConfig.embed_dim = 24
ModelConfig.embed_dim = 32
pretrain/Training.loss = @Loss()
Loss.distillation = 'model'
Loss.distillation_until = 3
"""
    )
    return ["pretrain", str(file)]


def test_a_smaller_model_teaches_its_first_steps_in_one_program(taught, pretrained, tmp_path):
    before = train_step._cache_size()
    assert main([*taught, f"--gin.Run.output_dir='{tmp_path}/run'"]) == 0
    assert train_step._cache_size() == before + 1
    folder = tmp_path / "run" / "round_0" / "pretrain"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    apart = [abs(line["optimised"] / line["loss"] - 1) > 1e-6 for line in lines]
    assert apart == [True] * 3 + [False] * 5
    theirs = pretrained / "round_0" / "pretrain" / "tokenizer.model"
    assert (folder / "tokenizer.model").read_bytes() == theirs.read_bytes()


def test_another_teacher_makes_it_stale_and_another_folder_does_not(
    taught, pretrained, tmp_path, capsys
):
    words = [*taught, f"--gin.Run.output_dir='{tmp_path}/run'", "--gin.pretrain/Training.steps=1"]
    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(pretrained / "round_0" / "pretrain" / "params", moved)
    model = lmsi_jax.load(pretrained / "round_0" / "pretrain" / "params")
    with contextlib.closing(Checkpoints(other)) as saved:
        saved.save(1, jax.tree.map(lambda leaf: 2 * leaf, model.params))
    assert main([*words, f"--gin.Pretraining.teacher='{moved}'"]) == 0
    shutil.rmtree(moved)
    assert main(words) == 0
    assert main([*words, f"--gin.Pretraining.teacher='{other}'"]) == 2
    assert "teacher was" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_killed_after_its_teacher_has_left_it_goes_on_to_the_same_bytes(taught, tmp_path):
    whole, cut = (f"--gin.Run.output_dir='{tmp_path}/{name}'" for name in ("whole", "cut"))
    assert main([*taught, whole]) == 0
    killed_after([*taught, cut], "training.checkpoints", "Checkpoints.save", 2)
    assert main([*taught, cut]) == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


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
