"""What the progress of a stage says, by a clock that the test turns."""

import io

import pytest

from lmsi_jax.runtime import progress
from lmsi_jax.runtime.progress import Progress, SlowWork


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


def _slow(clock, stream):
    return SlowWork(after=1.5, every=30.0, stream=stream, clock=clock)


def test_slow_work_is_reported_at_its_beginning_now_and_then_and_at_its_end():
    clock, stream = _Clock(), io.StringIO()
    slow = _slow(clock, stream)
    slow.begin("key", "compiling decoding, program 2")
    for _ in range(80):
        clock.now += 1
        slow.look()
    slow.end("key")
    assert stream.getvalue().splitlines() == [
        "compiling decoding, program 2 ...",
        "compiling decoding, program 2 · 0:32 so far",
        "compiling decoding, program 2 · 1:02 so far",
        "compiling decoding, program 2 in 1:20",
    ]


def test_quick_work_is_not_mentioned_even_if_much_of_it_takes_long():
    clock, stream = _Clock(), io.StringIO()
    slow = _slow(clock, stream)
    for number in range(50):
        slow.begin("key", f"compiling {number}")
        clock.now += 1
        slow.look()
        slow.end("key")
        slow.look()
    assert stream.getvalue() == ""


def test_work_within_other_work_has_lines_of_its_own():
    clock, stream = _Clock(), io.StringIO()
    slow = _slow(clock, stream)
    slow.begin(1, "loading the model")
    clock.now += 1
    slow.begin(2, "compiling a program")
    clock.now += 1
    slow.look()
    slow.end(2)
    clock.now += 3
    slow.look()
    slow.end(1)
    assert stream.getvalue().splitlines() == ["loading the model ...", "loading the model in 0:05"]


def test_above_a_live_bar_lines_do_not_break_it(monkeypatch):
    clock, stream = _Clock(), _Terminal()
    slow = SlowWork(after=0.0, clock=clock)
    with _progress(clock, stream) as progress:
        slow.begin(1, "compiling [decoding], program 1")
        slow.look()
        progress.advance(500)
    text = stream.getvalue()
    assert "compiling [decoding], program 1 ..." in text
    assert text.index("compiling") < text.rindex("500/500 questions")


def test_programs_that_jax_compiles_are_slow_work_within_the_block_alone(monkeypatch):
    jax = pytest.importorskip("jax")
    seen = []

    class Recorder(SlowWork):
        def begin(self, key, what):
            seen.append(what)
            super().begin(key, what)

        def end(self, key):
            seen.append("end")
            super().end(key)

    monkeypatch.setattr(progress, "SlowWork", Recorder)

    def decode_chunk(x):
        return x * 2 + 1

    with progress.slow_work_reported():
        program = jax.jit(decode_chunk)
        ones, pair = jax.numpy.ones(3), jax.numpy.ones((2, 2))
        seen.clear()
        program(ones)
        program(ones)
        program(pair)
        with progress.doing("loading the model"):
            pass
    first, second = seen[0], seen[2]
    assert first.startswith("compiling decoding, program ") and first < second
    assert seen == [first, "end", second, "end", "loading the model", "end"]
    program(jax.numpy.ones(5))
    with progress.doing("loading the model"):
        pass
    assert len(seen) == 6
