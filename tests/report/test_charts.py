"""Charts: what they draw, what they say to who cannot see them, and values that cannot be drawn."""

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.evaluation.accuracy import accuracy_by_confidence
from lmsi_jax.report import charts

BAR = charts.Bar(0.481, 0.41, 0.55)


def parsed(chart):
    return ET.fromstring(chart)


def words(chart):
    return ["".join(node.itertext()) for node in parsed(chart).iter("text")]


def numbers(chart):
    return [
        float(n) for n in re.findall(r'(?:x|y|cx|cy|x1|x2|y1|y2|width|height)="([^"]*)"', chart)
    ]


def test_bars_are_as_long_as_their_values():
    group = charts.Group("sums", [charts.Bar(0.25, 0.2, 0.3), charts.Bar(0.75, 0.7, 0.8)])
    chart = charts.grouped_bars("Accuracy", [group], ["Base", "Round 1"])
    first, last = (float(r.get("width")) for r in parsed(chart).iter("rect"))
    assert last == pytest.approx(3 * first, rel=0.01)
    assert "25.0" in words(chart) and "75.0" in words(chart)


def test_a_chart_says_in_words_what_it_shows():
    chart = parsed(charts.grouped_bars("Accuracy", [charts.Group("sums", [BAR])], ["Base"]))
    assert chart.get("role") == "img"
    assert chart.find("title").text == "Accuracy"
    said = chart.find("desc").text.replace("\N{NO-BREAK SPACE}", " ")
    assert said == "sums: Base 48.1 % (95 % interval 41.0 % to 55.0 %)"


def test_a_missing_bar_is_named_instead_of_drawn_as_zero():
    chart = charts.grouped_bars("A", [charts.Group("sums", [BAR, None])], ["Base", "Round 1"])
    assert len(list(parsed(chart).iter("rect"))) == 1
    assert "not measured" in words(chart)


def test_no_groups_make_an_empty_chart():
    assert parsed(charts.grouped_bars("A", [], ["Base"])).find("title").text == "A"


def test_labels_are_escaped():
    chart = charts.grouped_bars("<b>&", [charts.Group("<i>", [BAR])], ["<script>"])
    assert "<script>" not in chart and parsed(chart).find("title").text == "<b>&"


def test_a_long_label_is_cut_and_whole_in_its_title():
    name = "a_family_with_a_very_long_name_indeed"
    chart = parsed(charts.grouped_bars("A", [charts.Group(name, [BAR])], ["Base"]))
    label = next(t for t in chart.iter("text") if t.find("title") is not None)
    assert label.find("title").text == name and label.find("title").tail.endswith("…")


def test_a_value_that_is_not_finite_leaves_a_gap():
    points = [(1, 0.5), (2, 0.4), (3, math.nan), (4, math.inf), (5, 0.3), (6, 0.2)]
    chart = charts.line_chart("Loss", [charts.Line("loss", points)], "step", "nats")
    assert len(list(parsed(chart).iter("polyline"))) == 2
    assert "nan" not in chart and "inf" not in chart.replace("info", "")


def test_a_line_without_any_value_says_so():
    chart = charts.line_chart("Loss", [charts.Line("loss", [(1, math.nan)])], "step", "nats")
    assert words(chart) == ["No values to draw."]


@given(
    st.lists(
        st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), max_size=5), min_size=1, max_size=5
    ),
    st.booleans(),
)
def test_every_line_stays_inside_its_chart(curves, whole_x):
    lines = [charts.Line(f"line {i}", list(enumerate(c))) for i, c in enumerate(curves)]
    chart = charts.line_chart("A", lines, "x", "y", whole_x=whole_x)
    height = float(parsed(chart).get("viewBox").split()[3])
    for node in parsed(chart).iter("polyline"):
        for x, y in (map(float, p.split(",")) for p in node.get("points").split()):
            assert 0 <= x <= charts.WIDTH and 0 <= y <= height


@given(st.integers(1, 8))
def test_names_at_the_ends_of_lines_do_not_overlap(count):
    lines = [charts.Line(f"line {i}", [(0, 1.0), (1, 0.5)]) for i in range(count)]
    chart = charts.line_chart("A", lines, "x", "y")
    named = [t for t in parsed(chart).iter("text") if (t.text or "").startswith("line")]
    heights = sorted(float(t.get("y")) for t in named)
    assert all(b - a >= 13.9 for a, b in zip(heights, heights[1:], strict=False))


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_ticks_are_few_and_span_the_values(low, extent):
    marks = charts.ticks(low, low + extent, math.inf)
    slack = 1e-6 * max(1e-6, abs(low), extent)
    assert marks[0] <= low + slack and marks[-1] >= low + extent - slack
    assert 2 <= len(marks) <= 12


def test_confidence_chart_counts_the_votes_of_each_bin():
    sure, right = [0.1, 0.3, 0.5, 0.9, 0.95, 1.0], [False, False, True, True, True, False]
    bins = accuracy_by_confidence(sure, right, bins=5)
    chart = charts.confidence_chart("Figure", [("Base", bins)])
    assert words(chart)[-5:] == ["1", "1", "1", "0", "3"]
    assert len(list(parsed(chart).iter("circle"))) == 4
    assert "2 of 3 right" in parsed(chart).find("desc").text


def test_confidence_chart_takes_bins_without_votes():
    chart = charts.confidence_chart("Figure", [("Base", accuracy_by_confidence([], [], bins=5))])
    assert not list(parsed(chart).iter("circle")) and "nan" not in chart


@given(st.floats(-1, 1), st.floats(0, 0.3), st.floats(0, 0.3))
def test_a_change_mark_stays_inside_its_cell(difference, below, above):
    low, high = difference - below, difference + above
    scale = min(-0.02, low), max(0.02, high)
    mark = charts.change_mark(difference, low, high, scale, "up")
    assert all(0 <= n <= 100 for n in numbers(mark.replace("viewBox", "")))


def test_every_series_of_a_ramp_has_its_own_colour():
    paints = [tuple(charts.paint(i, 4).values()) for i in range(4)]
    assert len(set(paints)) == 4 and paints[0] == ("ramp base",) and paints[-1] == ("ramp last",)
