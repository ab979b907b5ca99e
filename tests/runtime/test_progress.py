"""What the progress of a stage says, by a clock that the test turns."""

import io

import pytest

from lmsi_jax.runtime.progress import Progress


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _progress(clock, stream, **changes) -> Progress:
    options = {"total": 500, "unit": "questions", "rate_unit": "tokens", "every": 10.0} | changes
    return Progress("sampling", stream=stream, clock=clock, **options)


def test_without_a_terminal_a_line_appears_every_so_many_seconds_and_one_at_the_end():
    clock, stream = _Clock(), io.StringIO()
    with _progress(clock, stream) as progress:
        for _ in range(5):
            clock.now += 4
            progress.advance(100, amount=4000, note="parsed 93 %")
    assert stream.getvalue().splitlines() == [
        "sampling 300/500 questions (60 %) · 1,000 tokens/s · 0:08 left · parsed 93 %",
        "sampling 500/500 questions (100 %) in 0:20 · 1,000 tokens/s · parsed 93 %",
    ]


def test_work_of_an_earlier_process_counts_as_done_but_not_as_throughput():
    clock = _Clock()
    with _progress(clock, io.StringIO(), initial=400) as progress:
        assert progress.eta is None
        clock.now += 50
        progress.advance(50, amount=500)
        assert (progress.done, progress.rate, progress.eta) == (450, 10.0, 50.0)


def test_throughput_counts_the_units_themselves_by_default():
    clock, stream = _Clock(), io.StringIO()
    with Progress("training", 4, unit="steps", stream=stream, clock=clock) as progress:
        clock.now += 4000
        progress.advance()
    last = stream.getvalue().splitlines()[-1]
    assert last == "training 1/4 steps (25 %) in 1:06:40 · 0.00025 steps/s"


def test_an_unknown_total_has_neither_percent_nor_time_left():
    clock = _Clock()
    with _progress(clock, io.StringIO(), total=None) as progress:
        clock.now += 1
        progress.advance(3, amount=30)
        assert progress.line() == "sampling 3 questions · 30 tokens/s"


def test_a_stage_that_breaks_off_says_so():
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), _progress(_Clock(), stream):
        raise KeyboardInterrupt
    assert stream.getvalue() == "sampling 0/500 questions (0 %) stopped after 0:00\n"


def test_nothing_to_do_is_no_division_by_zero():
    stream = io.StringIO()
    with _progress(_Clock(), stream, total=0) as progress:
        progress.advance(0)
    assert stream.getvalue() == "sampling 0/0 questions in 0:00\n"


def test_a_terminal_gets_a_bar_with_the_same_facts(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    clock, stream = _Clock(), _Terminal()
    with _progress(clock, stream) as progress:
        clock.now += 5
        progress.advance(250, amount=5000, note="parsed 93 % [of all]")
    last = stream.getvalue().splitlines()[-2]
    assert "250/500 questions (50 %)" in last and "1,000 tokens/s" in last
    assert "parsed 93 % [of all]" in last  # brackets are text here, not rich's markup
