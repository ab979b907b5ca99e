"""Checkpoints: their layout on disk, and what is refused by which name."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from lmsi_jax.errors import LmsiError
from lmsi_jax.models.decoder import parameter_shapes
from lmsi_jax.training import checkpoints
from lmsi_jax.training.checkpoints import Checkpoints
from lmsi_jax.training.optimizers import Optimizer


@pytest.fixture
def saved(tmp_path, micro_params):
    """A folder with one checkpoint, with the optimiser's state."""
    state = Optimizer().transformation(9).init(micro_params)
    state = jax.tree.map(lambda leaf: leaf + 3, state)
    made = Checkpoints(tmp_path / "run")
    made.save(4, micro_params, state)
    made.close()
    return tmp_path / "run", state


def _same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


def test_the_layout_is_t5xs(saved):
    tree = ocp.PyTreeCheckpointer().restore((saved[0] / "checkpoint_4" / "state").resolve())
    assert set(tree) == {"target", "state"}
    assert set(tree["state"]) == {"step", "param_states"}
    assert int(tree["state"]["step"]) == 4
    assert "embedding" in tree["target"] and "query" in tree["target"]["layer_0"]


def test_parameters_come_back_bit_by_bit(saved, micro_config, micro_params):
    shapes = parameter_shapes(micro_config)
    for path in (saved[0], saved[0] / "checkpoint_4"):
        found = checkpoints.load_params(path, shapes)
        assert _same(found, micro_params)
        assert jax.tree.structure(found) == jax.tree.structure(micro_params)


def test_the_optimiser_comes_back_in_its_own_structure(saved, micro_params):
    folder, state = saved
    blank = jax.tree.map(jnp.zeros_like, state)
    params, found = Checkpoints(folder).restore(4, micro_params, blank)
    assert _same(params, micro_params) and _same(found, state)
    assert jax.tree.structure(found) == jax.tree.structure(state)


def test_another_optimiser_is_refused(saved, micro_params):
    other = Optimizer(name="adafactor").transformation(9).init(micro_params)
    with pytest.raises(LmsiError, match="it has no"):
        Checkpoints(saved[0]).restore(4, micro_params, other)


@pytest.mark.parametrize(
    ("keep", "left"), [(1, {"checkpoint_3"}), (2, {"checkpoint_2", "checkpoint_3"})]
)
def test_the_newest_are_kept(tmp_path, keep, left):
    made = Checkpoints(tmp_path, keep=keep)
    for step in (1, 2, 3):
        made.save(step, {"w": np.ones(3, np.float32)})
    made.close()
    assert {path.name for path in tmp_path.iterdir()} == left
    assert Checkpoints(tmp_path).latest == 3
    assert checkpoints.find(tmp_path).name == "checkpoint_3"


def test_the_newest_is_by_number_and_unfinished_ones_do_not_count(tmp_path):
    for name in ("checkpoint_9", "checkpoint_10", "checkpoint_11.orbax-checkpoint-tmp-1", "other"):
        (tmp_path / name / "state").mkdir(parents=True)
    assert checkpoints.find(tmp_path).name == "checkpoint_10"
    assert checkpoints.present(tmp_path) and not checkpoints.present(tmp_path / "other")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(
        LmsiError, match=re.escape(f"no checkpoint in {tmp_path / 'none'}; there is")
    ):
        checkpoints.find(tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 321}, r"embedding is \(320, 24\), ModelConfig wants \(321, 24\)"),
        ({"num_layers": 3}, "it has no 'layer_2"),
        ({"mlp_dim": 48}, "ModelConfig wants"),
    ],
)
def test_another_models_checkpoint_is_refused_by_its_shape(saved, micro_config, changes, message):
    shapes = parameter_shapes(dataclasses.replace(micro_config, **changes))
    with pytest.raises(LmsiError, match=message):
        checkpoints.load_params(saved[0], shapes)


def test_a_foreign_tree_is_refused(tmp_path, micro_config):
    folder = tmp_path / "checkpoint_1" / "state"
    ocp.PyTreeCheckpointer().save(folder, {"params": np.ones(3), "step": 1})
    with pytest.raises(LmsiError, match=r"no 'target' tree of parameters; found \['params'"):
        checkpoints.load_params(tmp_path, parameter_shapes(micro_config))


def test_a_damaged_array_is_named_and_not_read(saved, micro_config):
    data = saved[0] / "checkpoint_4" / "state" / "ocdbt.process_0" / "d"
    for file in data.iterdir():
        file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(LmsiError, match="checkpoint_4 is incomplete or damaged.*delete it"):
        checkpoints.load_params(saved[0], parameter_shapes(micro_config))


def test_the_digest_is_of_names_shapes_and_values():
    base = {"a": np.arange(6, dtype=np.float32), "b": np.zeros(2, np.float32)}
    others = [
        {**base, "a": base["a"].reshape(2, 3)},
        {**base, "a": base["a"] + np.float32(1e-7)},
        {"c": base["a"], "b": base["b"]},
        {**base, "b": np.zeros(2, np.int32)},
    ]
    digests = {checkpoints.digest(tree) for tree in (base, *others)}
    assert len(digests) == 5
    assert checkpoints.digest(dict(reversed(base.items()))) == checkpoints.digest(base)
