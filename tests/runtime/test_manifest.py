"""The manifest says what a run was made with, and nothing about whose machine it was."""

import importlib.metadata
import pathlib

from lmsi_jax import __version__
from lmsi_jax.runtime.files import read_json
from lmsi_jax.runtime.store import write_manifest


def test_versions_seeds_and_hashes_are_there(tmp_path):
    path = write_manifest(
        tmp_path, command=["lmsi", "run"], seeds={"Run.seed": 3}, hashes={"model": "ab"}, devices=2
    )
    value = read_json(path)
    assert path.name == "manifest.json"
    assert value["lmsi_jax"] == __version__
    assert value["packages"]["jax"] == importlib.metadata.version("jax")
    assert value["seeds"] == {"Run.seed": 3} and value["hashes"] == {"model": "ab"}
    assert value["devices"] == 2 and value["command"] == ["lmsi", "run"]


def test_the_home_folder_does_not_appear(tmp_path, monkeypatch):
    monkeypatch.setattr(pathlib.Path, "home", lambda: pathlib.Path("/home/ann"))
    path = write_manifest(
        tmp_path,
        command=["--gin.Run.output_dir=/home/ann/x", "/home/ann", "/home/anna", "/mnt/home/ann/x"],
        hashes={"/home/ann/model": "ab"},
    )
    value = read_json(path)
    assert value["command"] == ["--gin.Run.output_dir=~/x", "~", "/home/anna", "/mnt/home/ann/x"]
    assert value["hashes"] == {"~/model": "ab"}


def test_equal_runs_give_equal_manifests(tmp_path):
    first, second = (write_manifest(tmp_path / name, seeds={"s": 1}) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
