"""The progress bar of sampling, by a clock that the test sets."""

import io

from lmsi_jax.pipeline.sample import Meter
from lmsi_jax.records import Question, Sample
from lmsi_jax.rollout.requests import Stats
from lmsi_jax.runtime.progress import Progress
from lmsi_jax.voting import AnswerReader


def _question(uid, kind):
    return Question(uid=uid, task="t", text="Q: ?", kind=kind)


def _paths(uid, *texts):
    return [
        Sample(uid=uid, sample_index=k, text=text, tokens=9, logprob=-1.0, end="end_token")
        for k, text in enumerate(texts)
    ]


def test_the_bar_shows_questions_speeds_busy_slots_parsed_answers_and_the_time_left():
    now = [0.0]
    bar = Progress(
        "round 1: sampling", 50, unit="questions", rate_unit="tokens", initial=10,
        stream=io.StringIO(), clock=lambda: now[0],
    )  # fmt: skip
    meter = Meter(
        bar, {"a": _question("a", "number"), "b": _question("b", "yes_no")}, AnswerReader()
    )
    now[0] = 8.0
    meter.chunk(Stats(samples=3, tokens=400, slot_steps=500))
    now[0] = 10.0
    meter.question("a", _paths("a", "The answer is 7.", "no idea"))
    meter.question("b", _paths("b", "The answer is yes.", "The answer is no."))
    meter.chunk(Stats(samples=4, tokens=1000, slot_steps=1099, programs=3))
    assert bar.line() == (
        "round 1: sampling 12/50 questions (24 %) · 100 tokens/s · 3:10 left · "
        "0.4 samples/s, slots 91 % busy, 3 programs, parsed 75 %"
    )


def test_before_anything_is_known_no_notes_are_shown():
    bar = Progress("sampling", 2, unit="questions", stream=io.StringIO(), clock=lambda: 0.0)
    Meter(bar, {}, AnswerReader()).chunk(Stats())
    assert bar.line() == "sampling 0/2 questions (0 %)"
