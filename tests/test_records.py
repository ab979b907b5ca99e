"""Records: each becomes a line of JSON and comes back equal."""

import dataclasses
import json
import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax import records
from lmsi_jax.errors import LmsiError

RECORDS = [records.Exemplar, records.Question, records.Sample, records.Vote, records.Example]
finite = st.floats(allow_nan=False, allow_infinity=False)
keys = st.none() | st.text()
overrides = {
    records.Sample: {"logprob": finite},
    records.Vote: {
        "keys": st.lists(keys).map(tuple),
        "kept": st.lists(st.integers()).map(tuple),
        "tied": st.lists(st.text()).map(tuple),
        "confidence": finite,
        "entropy": finite,
    },
    records.Example: {"weight": finite},
}
any_record = st.one_of([st.builds(cls, **overrides.get(cls, {})) for cls in RECORDS])


@given(any_record)
def test_a_record_comes_back_equal_from_a_line_of_json(record):
    line = json.dumps(record.to_json())
    assert "\n" not in line
    assert type(record).from_json(json.loads(line)) == record


@pytest.mark.parametrize("logprobs", [None, (-0.5, -math.inf)])
def test_an_impossible_token_never_puts_infinity_into_json(logprobs):
    sample = records.Sample(
        uid="q",
        sample_index=0,
        text="x",
        tokens=2,
        logprob=-math.inf,
        end="stop",
        logprobs=logprobs,
    )
    line = json.dumps(sample.to_json(), allow_nan=False)
    assert records.Sample.from_json(json.loads(line)) == sample


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_log_probability_that_is_none_is_refused_by_name(value):
    fields = {"uid": "q", "sample_index": 3, "text": "x", "tokens": 2, "end": "stop"}
    for logprobs in ({"logprob": value}, {"logprob": -1.0, "logprobs": (-0.5, value)}):
        sample = records.Sample(**fields, **logprobs)
        with pytest.raises(ValueError, match=f"sample 3 of question 'q' .* {value}"):
            sample.to_json()


@pytest.mark.parametrize(
    ("end", "finished", "concluded"),
    [
        *[("end_token", True, True), ("next_question", True, True)],
        *[("stop", True, False), ("limit", False, False)],
    ],
)
def test_only_an_end_token_or_a_next_question_ends_a_solution(end, finished, concluded):
    sample = records.Sample(uid="q", sample_index=0, text="", tokens=1, logprob=0.0, end=end)
    assert (sample.finished, sample.concluded) == (finished, concluded)
    assert end in get_args(records.End)


def test_unknown_and_missing_fields_are_named():
    row = {"question": "Q: 1?", "reasoning": "", "answer": "1"}
    with pytest.raises(ValueError, match="Exemplar has no field 'hint'"):
        records.Exemplar.from_json(row | {"hint": ""})
    del row["answer"]
    with pytest.raises(ValueError, match=r"Exemplar: .*'answer'"):
        records.Exemplar.from_json(row)


def test_records_cannot_be_changed():
    exemplar = records.Exemplar(question="Q: 1?", reasoning="", answer="1")
    with pytest.raises(dataclasses.FrozenInstanceError):
        exemplar.answer = "2"


def test_a_question_is_unlabelled_unless_said_otherwise():
    assert records.Question(uid="q", task="t", text="Q: 1?", kind="number").gold is None


def test_listed_names_are_the_typed_ones():
    assert get_args(records.Kind) == records.KINDS
    assert get_args(records.Format) == records.FORMATS


def test_two_questions_of_one_uid_are_refused():
    first = records.Question(uid="q1", task="a", text="Q: 1?", kind="number")
    records.check_unique([first, dataclasses.replace(first, uid="q2")])
    with pytest.raises(LmsiError, match="two questions have the uid 'q1': 'Q: 1\\?' of a and"):
        records.check_unique([first, dataclasses.replace(first, task="b")])
