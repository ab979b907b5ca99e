"""A micro model that says "The answer is 7." by construction, its gin file, and a finished run."""

import dataclasses
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from lmsi_jax.cli.main import main
from lmsi_jax.training import checkpoints

# What the model says after the ":" of "A:". The digits share a state, so samples differ in them.
_PIECES = (":", "Th", "e", "▁an", "sw", "er", "▁is", "▁", "12347", ".", "\n", "\n")

SETTINGS = {
    "Run.rounds": 1,
    "Decoding.slots": 8,
    "Run.seed": 5,
    "Run.questions_per_shard": 2,
    "ModelConfig.max_length": 1024,
    "Questions.train": ("purchases", "compare"),
    "Questions.test": ("purchases",),
    "Questions.level": "easy",
    "Questions.train_count": 4,
    "Questions.test_count": 4,
    "Sampling.num_samples": 4,
    "Sampling.temperature": 0.7,
    "Sampling.max_new_tokens": 12,
    "Evaluation.prompt_styles": ("cot", "self_consistency"),
    "Evaluation.num_samples": 4,
    "Evaluation.temperature_after": 0.7,
    "Training.steps": 4,
    "Training.microbatches": 1,
    "Training.sequences_per_prefix": 2,
    "Training.sequence_length": 128,
    "Training.max_prefix_length": 352,
    "Training.log_every": 1,
    "Training.save_every": 1,
    "Optimizer.learning_rate": 1e-3,
}
_PARTS = {
    "model": "ModelConfig",
    "questions": "Questions",
    "decoding": "Decoding",
    "sampling": "Sampling",
    "voting": "Voting",
    "mixing": "Mixing",
    "training": "Training",
    "evaluation": "Evaluation",
    "collapse_monitor": "CollapseMonitor",
}


@pytest.fixture(scope="session")
def speaker(micro_config, micro_params, tokenizer_path):
    """Returns what makes weights of a chain of tokens: after piece i comes piece following[i]."""

    def make(pieces, following):
        return _speaking(micro_config, micro_params, tokenizer_path, pieces, following)

    return make


@pytest.fixture(scope="session")
def speaking_params(speaker):
    states = len(_PIECES) - 1
    # The last piece, a line feed, follows itself.
    return speaker(_PIECES[:states], [*range(1, states), states - 1])


def _speaking(micro_config, micro_params, tokenizer_path, made_of, following):
    """The MLP of layer 0 turns each piece into the next one."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=tokenizer_path)
    rng = np.random.default_rng(0)
    size, states = micro_config.embed_dim, len(made_of)
    embedding = np.zeros((micro_config.vocab_size, size), np.float32)
    embedding[:, states + 5 :] = rng.normal(size=(len(embedding), size - states - 5)) * 0.3
    for state, pieces in enumerate(made_of):
        several = pieces.isdigit()
        for number, piece in enumerate(pieces if several else [pieces]):
            row = embedding[processor.piece_to_id(piece)]
            row[:] = 0.0
            row[state] = 1.5 * (1.15 if piece == "7" else 1.0)
            if several:
                row[states + number] = 0.3  # so that training can tell them apart
    layer = {name: np.array(value) for name, value in micro_params["layer_0"].items()}
    for name in ("gate", "up", "down", "attention_out"):
        layer[name] *= 0.0
    for state, after in enumerate(following):
        layer["gate"][state, state] = layer["up"][state, state] = 1.0
        layer["down"][state, after] = 10.0
    silent = {**micro_params["layer_1"]}
    for name in ("down", "attention_out"):
        silent[name] = silent[name] * 0.0
    made = {name: jnp.asarray(value) for name, value in layer.items()}
    return {
        **micro_params,
        "embedding": jnp.asarray(embedding),
        "layer_0": made,
        "layer_1": silent,
    }


def _saved(folder, params):
    made = checkpoints.Checkpoints(folder)
    made.save(7, params)
    made.close()
    return str(folder)


@pytest.fixture(scope="session")
def speaking_checkpoint(tmp_path_factory, speaking_params):
    return _saved(tmp_path_factory.mktemp("speaking") / "base", speaking_params)


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory, micro_params):
    """Says nothing that can be parsed."""
    return _saved(tmp_path_factory.mktemp("random") / "base", micro_params)


@pytest.fixture(scope="session")
def gin_text(micro_config, speaking_checkpoint, tokenizer_path):
    """A whole run's gin file, without its output_dir."""
    settings = {
        **{f"ModelConfig.{k}": v for k, v in dataclasses.asdict(micro_config).items()},
        "Run.init_checkpoint": speaking_checkpoint,
        "Run.tokenizer": tokenizer_path,
        **SETTINGS,
    }
    lines = [f"{name} = {value!r}" for name, value in settings.items()]
    lines += [f"Run.{part} = @{name}()" for part, name in _PARTS.items()]
    lines.append("Training.optimizer = @Optimizer()")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def gin_file(tmp_path_factory, gin_text):
    path = tmp_path_factory.mktemp("gin") / "micro.gin"
    path.write_text(gin_text)
    return str(path)


@pytest.fixture
def words(gin_file):
    """Returns the arguments of `lmsi COMMAND` into a folder, with some parameters changed."""

    def make(command, output, changes=()):
        changed = {"Run.output_dir": str(output), **dict(changes)}
        return [command, gin_file, *(f"--gin.{name}={value!r}" for name, value in changed.items())]

    return make


@pytest.fixture
def lmsi(words, capsys):
    """Runs `lmsi COMMAND` here and returns (exit code, stdout, the error), both on one line."""

    def run(command, output, changes=()):
        capsys.readouterr()
        code = main(words(command, output, changes))
        captured = capsys.readouterr()
        out, error = (" ".join(text.split()) for text in (captured.out, captured.err))
        return code, out, error.partition("lmsi: error: ")[2]

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory, gin_file):
    """A finished run of one round; look at it, change copies only (see `copy`)."""
    output = tmp_path_factory.mktemp("finished") / "run"
    assert main(["run", gin_file, f"--gin.Run.output_dir={str(output)!r}"]) == 0
    return output


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run."""
    return pathlib.Path(shutil.copytree(finished, tmp_path / "copy"))
