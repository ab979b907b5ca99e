"""Values by round: which value a round has, and what is refused before the first round."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.config import (
    AnswerEntropy,
    MinConfidence,
    Mixing,
    ModelConfig,
    Preference,
    Run,
    Training,
)
from lmsi_jax.config.run import SCHEDULABLE, scheduled_values
from lmsi_jax.errors import LmsiError

MODEL = ModelConfig(
    vocab_size=8, num_layers=1, embed_dim=8, num_heads=1, head_dim=8, mlp_dim=8, num_kv_heads=1
)
RUN = Run(
    output_dir="x",
    model=MODEL,
    mixing=Mixing(
        human_examples=3, selection=(AnswerEntropy(share=0.9), MinConfidence(confidence=0.1))
    ),
)


def _with(*schedule, run=RUN):
    return dataclasses.replace(run, schedule=schedule)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.integers(1, 9))
def test_a_round_has_its_value_and_the_last_one_holds_on(values, index):
    run = _with(("Training.human_rate", tuple(values)))
    wanted = (values + [values[-1]] * 9)[index - 1]
    assert run.in_round(index).training.human_rate == wanted
    assert scheduled_values(run, index) == {"Training.human_rate": wanted}


def test_only_what_is_named_changes_wherever_it_lies():
    run = _with(
        ("Optimizer.learning_rate", (1e-3, 5e-4)),
        ("AnswerEntropy.share", (0.9, 0.5)),
        ("Mixing.cap", (None, 4)),
        ("Sampling.temperature", (0.7, 1.2)),
    )
    second = run.in_round(2)
    assert second.training.optimizer.learning_rate == 5e-4
    assert second.mixing.selection == (AnswerEntropy(share=0.5), MinConfidence(confidence=0.1))
    assert second.mixing.cap == 4 and second.sampling.temperature == 1.2
    assert dataclasses.replace(run.in_round(1), schedule=()) == dataclasses.replace(
        RUN,
        training=dataclasses.replace(
            RUN.training, optimizer=dataclasses.replace(RUN.training.optimizer, learning_rate=1e-3)
        ),
    )


def test_without_a_schedule_the_run_is_the_same_in_all_rounds():
    assert RUN.in_round(1) is RUN and RUN.in_round(7) is RUN


def test_everything_that_may_change_is_there():
    pairs = Training(preference=Preference(form="scpo"))
    for part, fields in SCHEDULABLE.items():
        run = RUN  # what is set of single samples is refused beside pairs
        if part == "Preference":
            run = dataclasses.replace(RUN, mixing=Mixing(), training=pairs)
        for field in fields:
            value = {"steps": 3, "num_samples": 4, "cap": 5}.get(field, 0.25)
            found = _with((f"{part}.{field}", (value,)), run=run).in_round(1)
            owners = (
                *(found.sampling, found.augmentation, found.mixing, found.training),
                *(found.training.optimizer, found.training.preference),
            )
            (owner,) = [one for one in owners if type(one).__name__ == part]
            assert getattr(owner, field) == value


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ((("Training.strong_rat", (0.5,)),), "cannot change 'Training.strong_rat'; choose from"),
        ((("Run.seed", (1, 2)),), "cannot change 'Run.seed'"),
        ((("Mixing.human_examples", (1, 2)),), "or a parameter of a filter in Mixing.selection"),
        ((("DistributionShift.share", (0.5,)),), "cannot change 'DistributionShift.share'"),
        ((("Preference.threshold", (0.5,)),), "this run has no Preference; bind it or drop it"),
        ((("Mixing.cap", ()),), "needs a tuple of values for Mixing.cap"),
        ((("Mixing.cap", 3),), "('Mixing.cap', (FIRST, SECOND))"),
        ((("Mixing.cap", (3, "x")),), "Mixing.cap = 'x'; use a whole number or None"),
        ((("Training.steps", (3.5,)),), "Training.steps = 3.5; use a whole number"),
        ((("Mixing.cap", (3,)), ("Mixing.cap", (4,))), "has Mixing.cap twice"),
        (
            (("Mixing.min_confidence", (0.5, 1.5)),),
            "Run.schedule, round 2: Mixing.min_confidence = 1.5; use a share, 0 to 1",
        ),
        ((("AnswerEntropy.share", (0.5, 0.0)),), "round 2: AnswerEntropy.share = 0.0"),
    ],
)
def test_a_mistake_is_named_before_the_first_round(schedule, message):
    with pytest.raises(LmsiError) as error:
        _with(*schedule)
    assert message in str(error.value) and len(str(error.value).splitlines()) <= 2


def test_strong_rates_want_given_solutions_in_every_round():
    none = dataclasses.replace(RUN, mixing=Mixing())
    with pytest.raises(LmsiError, match=r"round 2: .*set Mixing.human_examples above 0"):
        _with(("Training.human_rate", (0.0, 0.5)), run=none)
