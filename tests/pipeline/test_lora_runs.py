"""`lmsi run` with adapters: on one device, resumed, and on a mesh of eight virtual devices."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from micro_run import contents
from virtual_devices import environment

from lmsi_jax.cli.main import main
from lmsi_jax.config import Lora
from lmsi_jax.runtime import files
from lmsi_jax.training import checkpoints
from lmsi_jax.training.lora import fresh_adapters, merge_adapters

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The model that speaks by construction does so in its MLP: attention has no gradient.
TARGETS = ("gate", "down")
LORA = {"Training.lora": "@Lora()", "Lora.rank": 2, "Lora.targets": TARGETS}
LORA |= {"Evaluation.prompt_styles": ("cot",)}
MESH = {"Training.data": 2, "Training.model": 4, "Training.fsdp": True}


@pytest.fixture(scope="module")
def words(gin_file):
    """Returns the arguments of `lmsi COMMAND` into a folder."""

    def make(output, changes=()):
        settings = {"Run.output_dir": str(output), **LORA, **dict(changes)}
        return [
            "run",
            gin_file,
            *(
                f"--gin.{name}={value if str(value).startswith('@') else repr(value)}"
                for name, value in settings.items()
            ),
        ]

    return make


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, words):
    """A finished run."""
    output = tmp_path_factory.mktemp("lora") / "run"
    assert main(words(output)) == 0
    return output


def test_the_round_ends_as_a_plain_model_with_its_adapters_beside(
    adapted, speaking_params, micro_params
):
    train = adapted / "round_1" / "train"
    lora = Lora(rank=2, targets=TARGETS)
    reached = checkpoints.load_params(train, micro_params)
    own = checkpoints.load_params(train / "adapters", fresh_adapters(lora, micro_params))
    for name, leaf in merge_adapters(lora, speaking_params, own)["layer_0"].items():
        np.testing.assert_allclose(reached["layer_0"][name], leaf, atol=1e-6)
    changed = reached["layer_0"]["down"] - speaking_params["layer_0"]["down"]
    assert float(np.abs(changed).max()) > 0 and np.linalg.matrix_rank(np.asarray(changed)) <= 2
    assert (reached["embedding"] == speaking_params["embedding"]).all()


def test_interrupted_it_goes_on_to_the_same_bytes(adapted, words, tmp_path, monkeypatch):
    replace = files._replace

    def interrupted(path, data):
        if path.name == "digest.json" and not (tmp_path / "hit").exists():
            (tmp_path / "hit").touch()
            raise KeyboardInterrupt
        replace(path, data)

    monkeypatch.setattr(files, "_replace", interrupted)
    run = words(tmp_path / "run")
    assert [main(run), main(run)] == [130, 0]
    assert contents(tmp_path / "run") == contents(adapted)


def test_the_adapters_of_each_round_name_the_model_that_they_belong_on(
    words, tmp_path, micro_params
):
    """On any other model their sum is another one than the round's."""
    pytest.importorskip("safetensors")
    output = tmp_path / "run"
    changes = {"Run.rounds": 2, "Run.start_from": "last", "Lora.peft": True, "Training.steps": 1}
    assert main(words(output, changes)) == 0
    bases = []
    for number in (1, 2):
        train = output / f"round_{number}" / "train"
        config = json.loads((train / "adapters" / "peft" / "adapter_config.json").read_text())
        bases.append(config["base_model_name_or_path"])
        lora = Lora(rank=2, targets=TARGETS, peft=True)
        base = checkpoints.load_params(bases[-1], micro_params)
        own = checkpoints.load_params(train / "adapters", fresh_adapters(lora, micro_params))
        reached = checkpoints.load_params(train, micro_params)["layer_0"]
        for name, leaf in merge_adapters(lora, base, own)["layer_0"].items():
            np.testing.assert_allclose(reached[name], leaf, atol=1e-6)
    assert bases[1] == str(output / "round_1" / "train")


@pytest.mark.slow
def test_on_a_mesh_the_losses_are_those_of_one_device(adapted, words, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "lmsi_jax.cli.main", *words(tmp_path / "run", MESH)],
        cwd=ROOT,
        env=environment(8),
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, wanted = (
        [json.loads(line)["loss"] for line in path.read_text().splitlines()]
        for path in (
            run / "round_1" / "train" / "metrics.jsonl" for run in (tmp_path / "run", adapted)
        )
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
