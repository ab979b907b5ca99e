"""Hand-made series: each way to collapse raises its alarm, an ordinary improving run none."""

import dataclasses
import math

import pytest

from lmsi_jax.config import CollapseMonitor
from lmsi_jax.config.steps import ALARMS
from lmsi_jax.errors import LmsiError
from lmsi_jax.evaluation.collapse import CollapseMetrics, LabelledMetrics, alarms

BASE = CollapseMetrics(
    questions=400,
    samples=12_800,
    confidence=0.56,
    entropy=0.34,
    distinct=(0.08, 0.2, 0.3),
    length=60.0,
    unparsed=0.03,
    easy=0.15,
    distinct_kept=6.0,
    empty=0.01,
    kept=0.99,
    rows=9000,
    easy_weight=0.16,
    scored=LabelledMetrics(questions=400, confidence=0.56, majority=0.77, passed=0.97, single=0.5),
)


def _with(row, **changes):
    scored = {k: changes.pop(k) for k in list(changes) if k in ("majority", "passed", "sure")}
    if "sure" in scored:
        scored["confidence"] = scored.pop("sure")
    return dataclasses.replace(row, scored=dataclasses.replace(row.scored, **scored), **changes)


# Training votes of docs/rounds.md's measured run; the votes on test questions are the README's.
HEALTHY = [
    _with(BASE, confidence=0.496, entropy=0.504, distinct=(0.083, 0.255, 0.375), length=57.0,
          easy=0.03, easy_weight=0.03, sure=0.56, majority=0.768, passed=0.97),
    _with(BASE, confidence=0.665, entropy=0.347, distinct=(0.072, 0.219, 0.322), length=59.6,
          easy=0.13, easy_weight=0.13, sure=0.69, majority=0.825, passed=0.96),
    _with(BASE, confidence=0.807, entropy=0.214, distinct=(0.06, 0.178, 0.26), length=62.6,
          easy=0.383, easy_weight=0.383, sure=0.79, majority=0.83, passed=0.95),
]  # fmt: skip


def _names(series, monitor=None):
    rows = dict(enumerate(series, start=1))
    return [alarm.name for alarm in alarms(rows, monitor or CollapseMonitor())]


def test_an_improving_run_is_silent():
    for count in range(1, len(HEALTHY) + 1):
        assert _names(HEALTHY[:count]) == []


COLLAPSES = {
    "overconfident": [BASE, _with(BASE, sure=0.75, majority=0.6)],
    "calibration_gap": [BASE, _with(BASE, sure=0.9, majority=0.6)],
    "pass_at_m_drop": [BASE, _with(BASE, passed=0.85)],
    "entropy": [BASE, _with(BASE, entropy=0.2), _with(BASE, entropy=0.08)],
    "distinct": [BASE, _with(BASE, distinct=(0.04, 0.07, 0.1))],
    "shorter": [BASE, _with(BASE, length=25.0)],
    "longer": [BASE, _with(BASE, length=130.0)],
    "unparsed": [BASE, _with(BASE, unparsed=0.2)],
    "easy": [BASE, _with(BASE, easy_weight=0.6), _with(BASE, easy_weight=0.9)],
    "kept": [BASE, _with(BASE, kept=0.4)],
}


ALONE = [
    ("saturated", {"confidence": 0.96, "distinct_kept": 1.5}),
    ("no_diversity", {"entropy": 0.005}),
    ("empty", {"empty": 0.95}),
    ("empty", {"empty": 1.0, "entropy": 0.0}),
]


def test_every_alarm_has_a_collapse_here():
    assert (*dict.fromkeys(name for name, _ in ALONE), *COLLAPSES) == ALARMS


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("", {"confidence": 0.96}),  # sure, and still many ways
        ("", {"distinct_kept": 1.5}),  # few ways, and still unsure
        *ALONE,
    ],
)
def test_alarms_about_a_single_round_need_no_other_round(name, changes):
    raised = alarms({1: _with(BASE, **changes)}, CollapseMonitor())
    assert [alarm.name for alarm in raised] == [name] * bool(name)
    assert all(any(char.isdigit() for char in alarm.words) for alarm in raised)


def test_zero_turns_off_the_alarms_about_a_single_round():
    gone = _with(BASE, confidence=1.0, distinct_kept=1.0, entropy=0.0, empty=0.95)
    assert _names([gone]) == ["saturated", "no_diversity", "empty"]
    assert _names([gone], CollapseMonitor(saturated=(0.0, 0.0), no_diversity=0.0, empty=0.0)) == []


def test_one_sample_a_question_has_no_entropy_to_judge():
    assert _names([_with(BASE, samples=BASE.questions, entropy=0.0)]) == []


@pytest.mark.parametrize("name", COLLAPSES)
def test_each_collapse_raises_its_alarm_with_then_and_now(name):
    series = COLLAPSES[name]
    rows = dict(enumerate(series, start=1))
    raised = {alarm.name: alarm.words for alarm in alarms(rows, CollapseMonitor())}
    assert list(raised) == (
        ["overconfident", "calibration_gap"] if name == "calibration_gap" else [name]
    )
    assert "in round 1" in raised[name] and any(char.isdigit() for char in raised[name])
    assert _names(series[:1]) == []


@pytest.mark.parametrize("name", COLLAPSES)
def test_zero_turns_an_alarm_off(name):
    pairs = ("entropy", "distinct", "shorter", "longer", "kept")
    field = {"overconfident": "confidence_rise", "pass_at_m_drop": "pass_at_m_drop"}.get(name, name)
    off = CollapseMonitor(**{field: (0.0, 0.0) if name in pairs else 0.0})
    assert name in _names(COLLAPSES[name]) and name not in _names(COLLAPSES[name], off)


def test_a_slow_slide_is_seen_against_the_first_round_and_a_jump_against_the_last():
    slide = [_with(BASE, entropy=e) for e in (0.34, 0.25, 0.18, 0.13, 0.09)]
    assert _names(slide) == [] and _names([*slide, _with(BASE, entropy=0.06)]) == ["entropy"]
    words = alarms(
        {1: BASE, 2: _with(BASE, entropy=0.4), 3: _with(BASE, entropy=0.18)}, CollapseMonitor()
    )
    assert [w.name for w in words] == ["entropy"] and "in round 2 0.40" in words[0].words


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("entropy", {"entropy": 0.15}),
        ("distinct", {"distinct": (0.05, 0.11, 0.2)}),
        ("shorter", {"length": 40.0}),
        ("longer", {"length": 100.0}),
        ("kept", {"kept": 0.65}),
    ],
)
def test_a_jump_is_seen_in_the_second_round_already(name, changes):
    """The round before is the first one too: the limit of either holds."""
    assert _names([BASE, _with(BASE, **changes)]) == [name]
    assert _names([BASE, BASE, _with(BASE, **changes)]) == [name]


def test_a_total_collapse_raises_one_alarm_of_each_kind_in_order():
    gone = _with(BASE, sure=1.0, majority=0.3, passed=0.3, entropy=0.0, length=8.0, kept=0.3,
                 distinct=(0.01, 0.02, 0.02), unparsed=0.5, easy_weight=1.0)  # fmt: skip
    expected = [name for name in ALARMS if name not in ("saturated", "empty", "longer")]
    assert _names([BASE, _with(BASE, entropy=0.3), gone]) == expected


def test_a_fall_within_chance_raises_nothing():
    few = _with(BASE, sure=0.75, majority=0.7)
    assert "overconfident" in _names([BASE, few])
    small = [
        dataclasses.replace(row, scored=dataclasses.replace(row.scored, questions=60))
        for row in (BASE, few)
    ]
    assert "overconfident" not in _names(small)
    error = math.sqrt(0.77 * 0.23 / 60 + 0.7 * 0.3 / 60)  # of the difference
    assert 2 * error > 0.07


def test_few_questions_raise_only_the_alarm_about_missing_answers():
    none = _with(BASE, questions=8, empty=1.0, entropy=0.0, length=1.0)
    assert _names([BASE, none]) == ["empty"]
    series = [dataclasses.replace(row, questions=29) for row in COLLAPSES["shorter"]]
    assert _names(series) == []
    assert _names(series, CollapseMonitor(least_questions=29)) == ["shorter"]


def test_missing_metrics_raise_nothing():
    bare = dataclasses.replace(BASE, scored=None, kept=None, rows=None, easy_weight=None)
    assert _names([bare, bare]) == _names([BASE, bare]) == _names([bare, BASE]) == []
    assert alarms({}, CollapseMonitor()) == []


def test_an_alarm_calls_round_0_the_base_model():
    (alarm,) = alarms({0: BASE, 1: _with(BASE, length=20.0)}, CollapseMonitor())
    assert alarm.words == "the samples got short: tokens a sample 20.0, of the base model 60.0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"stop": ("entropie",)},
            "CollapseMonitor.stop has 'entropie'; choose from saturated, no_diversity, empty",
        ),
        ({"kept": (0.5,)}, "CollapseMonitor.kept = (0.5,); use two numbers of 0 or more"),
        ({"longer": (-1.0, 2.0)}, "two numbers of 0 or more"),
        ({"saturated": (0.9,)}, "CollapseMonitor.saturated = (0.9,); use two numbers of 0 or more"),
        ({"calibration_gap": -0.1}, "CollapseMonitor.calibration_gap = -0.1; use 0 (off) or more"),
    ],
)
def test_a_wrong_setting_is_named(changes, message):
    with pytest.raises(LmsiError) as error:
        CollapseMonitor(**changes)
    assert message in str(error.value)
