"""Damage to a finished run: named with a remedy that works, and mended by the same command."""

import pytest
from micro_run import contents, snapshot

from lmsi_jax.training import checkpoints


@pytest.mark.parametrize("how", ["as it is", "deleted as the message says", "of a stage cut off"])
def test_a_stage_with_damaged_metrics_is_trained_again_to_the_same_bytes(
    finished, copy, lmsi, micro_params, caplog, how
):
    train = copy / "round_1" / "train"
    file = train / "metrics.jsonl"
    file.write_bytes(file.read_bytes() + b"x")
    code, _, error = lmsi("report", copy)
    assert code == 2 and f"{file} is damaged (line 5); delete it and repeat `lmsi run`" in error
    if how == "deleted as the message says":
        file.unlink()
    elif how == "of a stage cut off":
        (train / "stage.json").unlink()
    before = snapshot(copy / "round_1" / "eval")
    assert lmsi("run", copy)[0] == 0  # with the report
    assert "trained again from its first step" in caplog.text
    assert contents(copy) == contents(finished)
    assert snapshot(copy / "round_1" / "eval") == before  # of the same model, so it stands
    models = [checkpoints.load_params(run / "round_1" / "train", micro_params)
              for run in (copy, finished)]  # fmt: skip
    assert len(set(map(checkpoints.digest, models))) == 1


@pytest.mark.parametrize(("command", "left"), [("run", b"[{}"), ("eval", None)])
def test_damaged_scores_are_named_and_made_anew_of_the_same_paths(
    finished, copy, lmsi, command, left
):
    folder = copy / "round_0" / "eval"
    if left is None:
        (folder / "scores.json").unlink()
    else:
        (folder / "scores.json").write_bytes(left)
    code, _, error = lmsi("report", copy)
    assert code == 2 and f"{folder / 'scores.json'} is missing or damaged" in error
    assert "repeat `lmsi run`, or the other command that evaluated" in error
    paths = {
        name: state
        for name, state in snapshot(folder).items()
        if name.suffix == ".gz" and not name.name.startswith("votes-")  # cast anew with the scores
    }
    assert paths
    assert lmsi(command, copy)[0] == 0 and lmsi("report", copy)[0] == 0
    assert contents(copy) == contents(finished)
    assert paths.items() <= snapshot(folder).items()
