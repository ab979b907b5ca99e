"""Checkpoints: their layout on disk, and what is refused by which name."""

import dataclasses
import re
import resource
import shutil
from contextlib import suppress

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from lmsi_jax.config import Optimizer
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.transformer import parameter_shapes
from lmsi_jax.training import checkpoints
from lmsi_jax.training.checkpoints import Checkpoints
from lmsi_jax.training.optimizers import transformation


@pytest.fixture
def saved(tmp_path, micro_params):
    """A folder with one checkpoint, with the optimiser's state."""
    state = transformation(Optimizer(), 9).init(micro_params)
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


def test_reading_says_nothing(saved, micro_config, caplog):
    checkpoints.load_params(saved[0], parameter_shapes(micro_config))
    assert [record.getMessage() for record in caplog.records] == []


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
    other = transformation(Optimizer(name="adafactor"), 9).init(micro_params)
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
    assert checkpoints.has_checkpoint(tmp_path) and not checkpoints.has_checkpoint(
        tmp_path / "other"
    )


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(
        LmsiError, match=re.escape(f"no checkpoint in {tmp_path / 'none'}; there is")
    ):
        checkpoints.find(tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 321}, r"embedding is \(320, 24\), ModelConfig expects \(321, 24\)"),
        ({"num_layers": 3}, "it has no 'layer_2"),
        ({"mlp_dim": 48}, "ModelConfig expects"),
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


_TREE = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 4)])
def test_the_best_are_kept_beside_the_newest(tmp_path, mode, best):
    made = Checkpoints(tmp_path, keep=1, keep_best=1, mode=mode)
    for step, loss in enumerate([5.0, 1.0, 3.0, 9.0, 4.0], start=1):
        made.save(step, _TREE, metrics={"loss": loss})
    made.save(6, _TREE)  # without a metric: never the best
    made.close()
    assert Checkpoints(tmp_path, keep=1, keep_best=1, mode=mode).steps == [best, 6]


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 4)])
def test_the_best_are_known_to_a_run_that_is_taken_up_after_each_checkpoint(tmp_path, mode, best):
    for step, loss in enumerate([5.0, 1.0, 3.0, 9.0, 4.0, None], start=1):
        made = Checkpoints(tmp_path, keep=1, keep_best=1, mode=mode)
        made.save(step, _TREE, metrics=None if loss is None else {"loss": loss})
        made.close()
    assert Checkpoints(tmp_path, keep=1, keep_best=1, mode=mode).steps == [best, 6]


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [3, 4]), (None, [1, 2, 3, 4])])
def test_a_checkpoint_whose_removal_was_cut_off_is_removed_by_the_next_process(
    tmp_path, keep, left
):
    made = Checkpoints(tmp_path, keep=None)
    for step in range(1, 5):
        made.save(step, _TREE)
    made.close()
    if keep is not None:
        (tmp_path / "checkpoint_2" / "_CHECKPOINT_METADATA").unlink()
        shutil.rmtree(tmp_path / "checkpoint_2" / "state")
    taken_up = Checkpoints(tmp_path, keep)
    assert taken_up.steps == [1, 2, 3, 4]
    taken_up.prune()
    assert taken_up.steps == left == sorted(checkpoints.steps(epath.Path(tmp_path)))
    taken_up.close()


def test_what_is_saved_in_the_background_is_what_was_there_when_saving_began(tmp_path):
    """The next step may write over the arrays at once: it is given them to use up."""
    made = Checkpoints(tmp_path, background=True)
    values = jnp.arange(2_000_000, dtype=jnp.float32)
    wanted = np.array(values)
    reading = {"rows": 7}
    made.save(1, {"w": values}, data_state=reading)
    used_up = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    for _ in range(3):
        values = used_up(values)
    made.wait()
    found = checkpoints.load_params(tmp_path, {"w": jax.ShapeDtypeStruct((2_000_000,), "float32")})
    np.testing.assert_array_equal(found["w"], wanted)
    assert made.data_state(1) == reading


def test_a_step_that_is_there_is_not_written_again(tmp_path):
    made = Checkpoints(tmp_path)
    made.save(1, _TREE)
    made.save(1, {"w": _TREE["w"] + 1})
    found = checkpoints.load_params(tmp_path, _TREE)
    assert (np.asarray(found["w"]) == _TREE["w"]).all()


def test_a_checkpoint_without_a_position_says_so(saved):
    assert Checkpoints(saved[0]).data_state(4) is None


def test_unfinished_saves_are_swept_away_and_do_not_count(tmp_path):
    made = Checkpoints(tmp_path)
    made.save(3, _TREE)
    made.close()
    half = tmp_path / "checkpoint_5.orbax-checkpoint-tmp"
    (half / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    again = Checkpoints(tmp_path)
    assert again.latest == 3 and not half.exists()
    again.save(5, _TREE)
    assert again.latest == 5


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ((), "the folder is empty, expected a folder checkpoint_N with an Orbax item 'state'"),
        (("checkpoint_5.orbax-checkpoint-tmp/state/x",), "cut off before it was whole"),
        (
            ("config.json", "model.safetensors"),
            "a Hugging Face model: run `lmsi import-hf` on it first",
        ),
        (("checkpoint", "target.w/0"), "T5X's old format"),
        (("default/_METADATA",), "an Orbax tree of other names"),
    ],
)
def test_what_was_found_instead_of_a_checkpoint_is_said(tmp_path, made, message):
    for name in made:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(LmsiError, match="no checkpoint in .*name a folder") as error:
        checkpoints.find(tmp_path)
    assert message in str(error.value)


def test_a_step_folder_without_state_is_named_with_what_it_holds(tmp_path):
    (tmp_path / "checkpoint_3" / "default").mkdir(parents=True)
    with pytest.raises(LmsiError, match="checkpoint_3 is no checkpoint.*found default.*'target'"):
        checkpoints.load_params(tmp_path, _TREE)


@pytest.mark.parametrize("damage", ["cut", "metadata", "manifest", "data"])
def test_each_missing_or_truncated_part_is_named_with_the_checkpoint_before(tmp_path, damage):
    tree = {"w": np.random.default_rng(0).normal(size=(300, 200)).astype(np.float32)}
    made = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        made.save(step, tree)
    made.close()
    state = tmp_path / "checkpoint_2" / "state"
    largest = max(
        (f for f in state.rglob("*") if f.is_file() and f.parent.name == "d"),
        key=lambda file: file.stat().st_size,
    )
    assert largest.stat().st_size > 100_000
    if damage == "cut":
        largest.write_bytes(largest.read_bytes()[:-1000])
    elif damage == "data":
        largest.unlink()
    else:
        (state / {"metadata": "_METADATA", "manifest": "manifest.ocdbt"}[damage]).unlink()
    with pytest.raises(LmsiError, match="checkpoint_2 is incomplete or damaged.*delete it.*step 1"):
        checkpoints.load_params(tmp_path, tree)


def test_another_optimiser_is_not_called_another_model(saved, micro_params):
    other = transformation(Optimizer(name="adafactor"), 9).init(micro_params)
    with pytest.raises(LmsiError, match="another optimizer.*set Optimizer as it was"):
        Checkpoints(saved[0]).restore(4, micro_params, other)


def test_a_missing_step_is_named_with_those_that_are_there(saved, micro_params):
    with pytest.raises(LmsiError, match="no .*checkpoint_9; found checkpoint_4"):
        Checkpoints(saved[0]).restore(9, micro_params, {})


def test_the_optimisers_arrays_are_found_by_their_path(saved):
    folder, state = saved
    found = checkpoints.optimizer_arrays(folder / "checkpoint_4")
    assert {"1.0.count", "1.0.mu.embedding", "1.0.nu.layer_0.query"} <= set(found)
    assert _same(found["1.0.mu.embedding"], state[1][0].mu["embedding"])


@pytest.mark.parametrize("portion", [1, 4000, 1 << 30])
def test_the_digest_of_what_is_stored_is_that_of_the_parameters(
    saved, micro_config, micro_params, monkeypatch, portion
):
    """Read array by array, some at a time, or all at once."""
    monkeypatch.setattr(checkpoints, "_PORTION", portion)
    found = checkpoints.stored_digest(saved[0], parameter_shapes(micro_config))
    assert found == checkpoints.digest(micro_params)


def test_only_what_is_asked_for_is_read(saved, micro_params, monkeypatch):
    folder, state = saved
    asked = []
    read = ocp.Checkpointer.restore
    monkeypatch.setattr(
        ocp.Checkpointer,
        "restore",
        lambda self, path, args: asked.append(read(self, path, args=args)) or asked[-1],
    )
    params, found = Checkpoints(folder).restore(4, None, state)
    assert params is None and _same(found, state)
    assert set(asked[-1]) == {"state"}
    checkpoints.load_params(folder, micro_params)
    assert set(asked[-1]) == {"target"}
    one = {"1": {"0": {"mu": {"embedding": state[1][0].mu["embedding"]}}}}
    assert _same(checkpoints.load_state(folder, one), one)
    with pytest.raises(LmsiError, match="belongs to another optimizer: it has no '1.0.other'"):
        checkpoints.load_state(folder, {"1": {"0": {"other": np.zeros(1)}}})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named_with_their_checkpoint(tmp_path, value):
    params = {"embedding": jnp.ones((3, 2)), "layer_0": {"up": jnp.ones((2, 2), jnp.bfloat16)}}
    checkpoints.check_finite(tmp_path / "checkpoint_7", params)
    params["layer_0"]["up"] = params["layer_0"]["up"].at[1, 0].set(value)
    with pytest.raises(LmsiError, match="checkpoint_7 has NaN or infinite numbers in layer_0.up;"):
        checkpoints.check_finite(tmp_path / "checkpoint_7", params)


@pytest.fixture
def small_files():
    """Files of 64 KiB at most, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("background", [False, True])
def test_a_disk_without_room_is_told_in_a_line_and_earlier_checkpoints_stay(
    tmp_path, small_files, background
):
    saved = Checkpoints(tmp_path, keep=None, background=background)
    saved.save(1, {"embedding": jnp.ones((8, 8))})
    saved.wait()
    noise = jax.random.normal(jax.random.key(0), (256, 1024))  # no compression makes it small
    with pytest.raises(LmsiError, match=f"cannot write {tmp_path}: File too large; make room on"):
        saved.save(2, {"embedding": noise})
        saved.wait()
    with suppress(LmsiError):
        saved.close()
    assert list(checkpoints.steps(epath.Path(tmp_path))) == [1]
