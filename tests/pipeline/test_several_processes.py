"""The whole command in several processes that share a folder: the same run as in one."""

import json
import shutil

import numpy as np
import pytest
from micro_run import contents
from several import together

# The disk of this process is full when it comes to the samples of the train questions.
_FULL = """
import errno, os
from lmsi_jax.runtime import files
replace = files._replace
def refuse(path, data):
    if path.parent.name == "sample":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    replace(path, data)
files._replace = refuse
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_leave_the_run_of_one(finished, words, tmp_path, count):
    codes, errors = together(words("run", tmp_path / "run"), count)
    assert codes == [0] * count, errors
    assert contents(tmp_path / "run") == contents(finished)
    for index, error in enumerate(errors):
        assert f"round 1: sampling, process {index} of {count}" in error
        assert ("training" in error) == (index == 0)


@pytest.mark.slow
def test_a_failure_of_one_process_is_said_by_all_and_the_run_goes_on(finished, words, tmp_path):
    codes, errors = together(words("run", tmp_path / "run"), 2, {1: _FULL})
    assert codes == [2, 2], errors
    zero, one = (" ".join(error.partition("lmsi: error: ")[2].split()) for error in errors)
    assert one.startswith("cannot write") and "make room on the disk" in one
    assert zero == f"process 1 failed: {one}"
    codes, errors = together(words("run", tmp_path / "run"), 2)
    assert codes == [0, 0], errors
    assert contents(tmp_path / "run") == contents(finished)


def _losses(train):
    lines = [json.loads(line) for line in (train / "metrics.jsonl").read_text().splitlines()]
    return [[line[name] for name in ("loss", "validation_loss") if name in line] for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
def test_training_on_the_devices_of_two_processes_is_that_of_one(
    finished, words, tmp_path, devices
):
    """One process with all the devices, and with one, and two with half of them each."""
    mesh = {"Training.data": 2, "Training.model": devices, "Training.fsdp": True}
    ways = {"one": (1, 1, {}), "mesh": (1, 2 * devices, mesh), "two": (2, devices, mesh)}
    for name, (count, each, changes) in ways.items():
        shutil.copytree(finished, tmp_path / name)
        shutil.rmtree(tmp_path / name / "round_1" / "train")
        changes = {**changes, "Training.validation_count": 2}
        codes, errors = together(words("train", tmp_path / name, changes), count, devices=each)
        assert codes == [0] * count, errors
        assert ["round 1: training" in error for error in errors] == [True, False][:count]
    one, mesh, two = (tmp_path / name / "round_1" / "train" for name in ways)
    np.testing.assert_allclose(_losses(two), _losses(one), rtol=1e-5)
    np.testing.assert_allclose(_losses(two), _losses(mesh), rtol=1e-6)
    if devices == 2:  # Gloo adds over more than two places in an order of its own
        for name in ("metrics.jsonl", "digest.json"):
            assert (two / name).read_bytes() == (mesh / name).read_bytes()


def _same_on_two_processes(arguments, tmp_path):
    """Trains by one process with four devices, and by two with two each; returns both folders."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, count, each in zip(folders, (1, 2), (4, 2), strict=True):
        codes, errors = together(arguments(folder), count, devices=each)
        assert codes == [0] * count, errors
    return [folder / "round_1" / "train" for folder in folders]


_MESH = {"Training.data": 2, "Training.model": 2, "Training.fsdp": True}


@pytest.mark.slow
def test_adapters_are_trained_by_two_processes_as_by_one(finished, words, tmp_path):
    def arguments(folder):
        shutil.copytree(finished, folder)
        shutil.rmtree(folder / "round_1" / "train")
        return [*words("train", folder, _MESH), "--gin.Training.lora=@Lora()", "--gin.Lora.rank=2"]

    one, two = _same_on_two_processes(arguments, tmp_path)
    np.testing.assert_allclose(_losses(two), _losses(one), rtol=1e-6)
    assert (two / "digest.json").read_bytes() == (one / "digest.json").read_bytes()
    assert sorted(path.name for path in (two / "adapters").iterdir()) == sorted(
        path.name for path in (one / "adapters").iterdir()
    )


@pytest.mark.slow
def test_a_teachers_probabilities_are_learnt_by_two_processes_as_by_one(finished, words, tmp_path):
    student = {
        **_MESH,
        "Distillation.teacher_dir": str(finished),
        "Loss.distillation": "model",
        "Run.init_checkpoint": "fresh",
        "ModelConfig.embed_dim": 12,
        "ModelConfig.num_layers": 1,
    }

    def arguments(folder):
        bound = ("Run.distillation=@Distillation()", "Training.loss=@Loss()")
        return [*words("distill", folder, student), *(f"--gin.{one}" for one in bound)]

    one, two = _same_on_two_processes(arguments, tmp_path)
    np.testing.assert_allclose(_losses(two), _losses(one), rtol=1e-6)
    assert (two / "digest.json").read_bytes() == (one / "digest.json").read_bytes()
