"""Held-out examples: which ones, their loss, and that a killed run measures the same."""

import dataclasses
import itertools
import json
import random

import one_run
import pytest
from reference_losses import cross_entropy, mean_loss

from lmsi_jax.config import Training
from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Example
from lmsi_jax.training import trainer
from lmsi_jax.training.checkpoints import Checkpoints
from lmsi_jax.training.metrics import read_metrics
from lmsi_jax.training.scoring import Validation, hold_out


def _examples(questions, each=3):
    return [
        Example(
            uid=f"legs/{number}",
            task="legs",
            format="few_shot_cot",
            source="self_generated",
            prefix="",
            inputs="Q",
            targets=f"A{copy}",
            weight=1.0,
        )
        for number in range(questions)
        for copy in range(each)
    ]


def test_whole_questions_are_held_out_whatever_the_order():
    rows = _examples(40)
    left, held_out = hold_out({"self_generated": rows, "human": []}, 10)
    assert len(held_out) == 12  # four questions of three examples
    assert {row.uid for row in held_out}.isdisjoint(row.uid for row in left["self_generated"])
    assert len(left["self_generated"]) + len(held_out) == len(rows)
    random.Random(0).shuffle(rows)
    again = hold_out({"self_generated": rows}, 10)[1]
    assert {row.uid for row in again} == {row.uid for row in held_out}
    assert {row.uid for row in hold_out({"self_generated": rows}, 13)[1]} > {
        row.uid for row in held_out
    }


def test_by_default_nothing_is_held_out():
    rows = _examples(4)
    assert hold_out({"self_generated": rows}, Training().validation_count) == (
        {"self_generated": rows},
        [],
    )


def test_a_source_of_which_nothing_would_be_left_is_refused_with_the_remedy():
    with pytest.raises(
        LmsiError, match="validation_count = 100 leaves none of the 12 self_generated"
    ):
        hold_out({"self_generated": _examples(4)}, 100)


@pytest.fixture(scope="module")
def held_out():
    """Rows behind three prefixes, more than one step holds, and no multiple of it."""
    return list(itertools.islice(one_run.rows(), 1000, 1037))


def test_the_loss_is_the_mean_over_each_row_alone(micro_config, micro_params, held_out):
    training = Training(**one_run.SETTINGS)
    found = Validation(micro_config, training, held_out).loss(micro_params)

    def each(row, at, scores, target):
        return cross_entropy(scores, target)

    wanted = mean_loss(micro_config, micro_params, held_out, each)
    assert found == pytest.approx(wanted, rel=1e-5)


class _Killed(Exception):
    pass


def test_it_is_measured_with_every_checkpoint_and_a_resumed_run_measures_the_same(
    tmp_path, held_out, monkeypatch
):
    changes = {"steps": 8, "validation_count": 9}
    for name in ("whole", "killed"):
        if name == "killed":
            step, begun = trainer.train_step, itertools.count(1)

            def killed(*args, step=step, begun=begun):
                if next(begun) == 6:
                    raise _Killed
                return step(*args)

            monkeypatch.setattr(trainer, "train_step", killed)
            with pytest.raises(_Killed):
                one_run.run(tmp_path / name, held_out=held_out, **changes)
            monkeypatch.undo()
        one_run.run(tmp_path / name, held_out=held_out, **changes)
    whole, killed = ((tmp_path / name / "metrics.jsonl") for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
    lines = {line["step"]: line for line in read_metrics(tmp_path / "whole")}
    assert [step for step in lines if "validation_loss" in lines[step]] == [3, 6, 8]
    assert [step for step in lines if "loss" in lines[step]] == [4, 8]
    assert lines[3]["validation_loss"] != lines[8]["validation_loss"]


def test_the_best_checkpoint_may_be_that_of_the_held_out_loss(tmp_path, held_out, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr(Validation, "loss", lambda self, params: next(losses))
    best = {"keep": 1, "keep_best": 1, "best_metric": "validation_loss"}
    one_run.run(tmp_path, held_out=held_out, steps=12, validation_count=9, **best)
    assert Checkpoints(tmp_path, None).steps == [6, 12]
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert found[-1]["validation_loss"] == 4.0


def test_a_best_held_out_loss_without_held_out_examples_is_refused():
    with pytest.raises(LmsiError, match="best_metric = 'validation_loss'.*validation_count"):
        Training(keep_best=1, best_metric="validation_loss")
    with pytest.raises(LmsiError, match="Training.validation_count = -1"):
        dataclasses.replace(Training(), validation_count=-1)
