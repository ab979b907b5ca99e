"""Small charts as inline SVG: no script, no network, colours and fonts from the page's style sheet.

Every chart is one `<svg role="img">` with a title and a description of its content in words. No
meaning depends on colour alone: series differ in lightness, dashes and labels too.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

from lmsi_jax.evaluation.accuracy import Bin
from lmsi_jax.evaluation.statistics import wilson
from lmsi_jax.report.comparison import decimal, format_count, percent
from lmsi_jax.report.html import Html, element

WIDTH = 420
"""Width of every chart in its own units: 12-unit text stays readable on a phone of 360 pixels."""
_CHARACTER = 6.4
"""Mean width of a 12-unit character."""


@dataclasses.dataclass(frozen=True)
class Bar:
    """A share with its interval, all in [0, 1]."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Group:
    """The bars of one row, one for each series; None if a series has none."""

    label: str
    bars: Sequence[Bar | None]
    heading: str = ""
    """Printed above the group, if a new kind of group begins."""


@dataclasses.dataclass(frozen=True)
class Line:
    """Points in rising x. A y that is not finite leaves a gap."""

    label: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float]] = ()
    """(low, high) of each point, or nothing."""


def grouped_bars(
    title: str, groups: Sequence[Group], series: Sequence[str], ramp: bool = True
) -> Html:
    """Returns horizontal bars from 0 to 100 % with whiskers and their values as text.

    Args:
      title: the chart's subject; also its accessible name.
      groups: the rows.
      series: the name of each bar of a group.
      ramp: colour the series as first, ..., last instead of as unrelated things.
    """
    left = min(150.0, 10 + _CHARACTER * max((len(g.label) for g in groups), default=0))
    right, thick = WIDTH - 46.0, 13 if len(series) < 3 else 11
    x = _Scale(0, 1, left, right)
    parts: list[Html] = []
    y = 4.0
    for group in groups:
        if group.heading:
            parts.append(_text(0, y + 12, group.heading, cls="heading"))
            y += 20
        middle = y + thick * len(series) / 2
        parts.append(_label(left - 8, middle + 4, group.label, left))
        for i, bar in enumerate(group.bars):
            parts += _bar(bar, paint(i, len(series) if ramp else 0), x, y + i * thick, thick)
        y += thick * len(series) + 9
    grid = [_rule(x(t), 0, x(t), y - 2) for t in (0, 0.25, 0.5, 0.75, 1)]
    marks = [_text(x(t), y + 12, percent(t, 0), cls="tick middle") for t in (0, 0.5, 1)]
    description = "; ".join(f"{g.label}: {_bars_in_words(g.bars, series)}" for g in groups)
    return _drawing(title, description, y + 18, [*grid, *parts, *marks])


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    ramp: bool = False,
    share: bool = False,
    whole_x: bool = False,
) -> Html:
    """Returns lines with their names at their right ends.

    Args:
      title: the chart's subject; also its accessible name.
      lines: the series; points without a finite y are gaps.
      x_label: the name of x, below.
      y_label: the name and unit of y, above.
      ramp: colour the lines as rounds 1, ..., last (the base's colour stays free) instead of as
        unrelated things.
      share: y is a share, written in percent from 0 on, so that neighbouring charts compare.
      whole_x: x are a few whole numbers; each gets a tick, each point a dot, and y starts at 0.
    """
    values = [v for line in lines for v in _finite_values(line)]
    xs = [px for line in lines for px, _ in line.points]
    if not values:
        words = "No values to draw."
        return _drawing(title, words, 40, [_text(0, 24, words, cls="tick")])
    low = min(0.0, *values) if whole_x or share else min(values)
    marks = ticks(low, max(values), 1.0 if share else math.inf)
    longest = max(len(line.label) for line in lines)
    right = WIDTH - (30 + _CHARACTER * longest if len(lines) > 1 else 10)
    top, bottom = 24.0, 178.0
    x, y = _Scale(min(xs), max(xs), 44, right), _Scale(marks[0], marks[-1], bottom, top)
    names = [f"{100 * t:g}\N{NO-BREAK SPACE}%" if share else f"{t:g}" for t in marks]
    parts = [_rule(44, y(t), right, y(t)) for t in marks]
    parts += [_text(38, y(t) + 4, n, cls="tick end") for t, n in zip(marks, names, strict=True)]
    parts += [_text(x(v), bottom + 16, n, cls=f"tick {a}") for v, n, a in _x_ticks(xs, whole_x)]
    parts.append(_text(0, 10, y_label, cls="tick"))
    parts.append(_text((44 + right) / 2, bottom + 32, x_label, cls="tick middle"))
    for i, line in enumerate(lines):
        parts += _line(line, _line_paint(i, len(lines), ramp), x, y, whole_x)
    if len(lines) > 1:
        parts += _end_labels(lines, ramp, right + 6, y, top, bottom)
    description = "; ".join(f"{line.label}: {_line_in_words(line, share)}" for line in lines)
    return _drawing(title, f"{y_label} by {x_label}. {description}", bottom + 38, parts)


def confidence_chart(title: str, series: Sequence[tuple[str, Sequence[Bin]]]) -> Html:
    """Returns accuracy against confidence (LMSI, figure 2).

    A dot's area grows with its bin's share of the votes; whiskers are 95 % Wilson intervals; on the
    dashed diagonal accuracy equals confidence; the number of votes in each bin is written below.
    """
    left, right, top, bottom = 64.0, WIDTH - 12.0, 24.0, 210.0
    x, y = _Scale(0, 1, left, right), _Scale(0, 1, bottom, top)
    marks = (0, 0.2, 0.4, 0.6, 0.8, 1)
    parts = [_rule(left, y(t), right, y(t)) for t in marks]
    parts += [_text(left - 8, y(t) + 4, percent(t, 0), cls="tick end") for t in marks]
    parts += [_text(x(t), bottom + 16, percent(t, 0), cls="tick middle") for t in marks]
    parts.append(_text(0, 10, "Accuracy of the vote", cls="tick"))
    words = "Confidence: agreeing samples / all"
    parts.append(_text(x(0.5), bottom + 32, words, cls="tick middle"))
    parts.append(_rule(x(0), y(0), x(1), y(1), cls="diagonal"))
    row = bottom + 52
    descriptions = []
    for i, (name, bins) in enumerate(series):
        style = paint(i, len(series))
        parts += _confidence_dots(bins, style, x, y, 9 * (i - (len(series) - 1) / 2))
        parts.append(_text(0, row, name, cls="tick"))
        parts += [
            _text(x((b.low + b.high) / 2), row, format_count(b.n), cls="tick middle") for b in bins
        ]
        parts.append(element("rect", x=54, y=row - 9, width=8, height=8, **style))
        row += 16
        descriptions.append(f"{name}: {_bins_in_words(bins)}")
    return _drawing(title, ". ".join(descriptions), row - 8, parts)


def change_mark(
    difference: float, low: float, high: float, scale: tuple[float, float], kind: str
) -> Html:
    """Returns a change with its interval around zero, small enough for a table's cell.

    Args:
      difference, low, high: shares.
      scale: the ends of the drawing; zero is between them.
      kind: the style, "up", "down" or "flat".
    """
    x = _Scale(*scale, 5, 95)
    return element(
        "svg",
        _rule(x(0), 0, x(0), 18, cls="zero"),
        _rule(x(low), 9, x(high), 9, cls="whisker"),
        element("circle", cx=_number(x(difference)), cy=9, r=4.2),
        viewbox="0 0 100 18",
        cls=f"mark {kind}",
        aria_hidden="true",
    )


def legend(names: Sequence[str]) -> Html:
    """Returns the colours of series first, ..., last with their names; nothing without names."""
    entries = []
    for i, name in enumerate(names):
        square = element("rect", x=0, y=0, width=10, height=10, **paint(i, len(names)))
        box = element("svg", square, viewbox="0 0 10 10", cls="swatch", aria_hidden="true")
        entries.append(element("span", box, name))
    return element("p", *entries, cls="legend") if entries else Html("")


def paint(index: int, ramp: int) -> dict[str, object]:
    """Returns class and style of a series.

    Args:
      index: its number.
      ramp: 0 for a hue of its own; n for step `index` of n from the base to the last model.
    """
    if ramp == 0:
        return {"cls": f"hue h{index % 6}"}
    if index == 0:
        return {"cls": "ramp base"}
    if index == ramp - 1:
        return {"cls": "ramp last"}
    mix = f"color-mix(in oklab, var(--last) {round(100 * index / (ramp - 1))}%, var(--base))"
    return {"cls": "ramp", "style": f"--c: {mix}"}


def ticks(low: float, high: float, limit: float, count: int = 4) -> list[float]:
    """Returns round numbers that span [low, high], from 0 if that costs little room.

    Args:
      low, high: the values' range.
      limit: the largest allowed number.
      count: about how many steps.
    """
    if 0 <= low < 0.5 * high:
        low = 0.0
    size = max(abs(low), abs(high))
    # Values that differ by rounding alone are one value, without any extent.
    span = high - low if high - low > 1e-6 * size else size
    span = span if span > 1e-12 else 1.0
    raw = span / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    marks = [float(f"{i * step:.12g}") for i in range(first, last + 1)]
    return [t for t in marks if t <= limit + 1e-9]


class _Scale:
    """Maps [low, high] linearly to [start, stop]; a range without extent maps to its middle."""

    def __init__(self, low: float, high: float, start: float, stop: float):
        self._low, self._span = low, high - low
        self._start, self._length = start, stop - start

    def __call__(self, value: float) -> float:
        share = (value - self._low) / self._span if self._span else 0.5
        return self._start + share * self._length


def _drawing(title: str, description: str, height: float, parts: Iterable[object]) -> Html:
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *parts,
        viewbox=f"0 0 {WIDTH} {_number(height)}",
        role="img",
        aria_label=f"{title}. {description}",
        cls="chart",
    )


def _text(x: float, y: float, words: str, cls: str) -> Html:
    return element("text", words, x=_number(x), y=_number(y), cls=cls)


def _label(x: float, y: float, words: str, room: float) -> Html:
    """A label that ends at x; one too long for its room is cut, with all of it in its title."""
    fits = int(room / _CHARACTER)
    shown = words if len(words) <= fits else words[: fits - 1] + "…"
    title = element("title", words)
    return element("text", title, shown, x=_number(x), y=_number(y), cls="label end")


def _rule(x1: float, y1: float, x2: float, y2: float, cls: str = "rule") -> Html:
    ends = {"x1": _number(x1), "y1": _number(y1), "x2": _number(x2), "y2": _number(y2)}
    return element("line", **ends, cls=cls)


def _whisker(x1: float, y1: float, x2: float, y2: float) -> Html:
    """An interval: a dark line on a light one, so that it shows on bars and on paper."""
    return Html(_rule(x1, y1, x2, y2, cls="halo") + _rule(x1, y1, x2, y2, cls="whisker"))


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _bar(
    bar: Bar | None, style: dict[str, object], x: _Scale, y: float, thick: int
) -> Iterator[Html]:
    middle = y + thick / 2
    if bar is None:
        yield _text(x(0) + 4, middle + 4, "not measured", cls="tick")
        return
    width = _number(x(bar.value) - x(0))
    yield element(
        "rect", x=_number(x(0)), y=_number(y + 0.5), width=width, height=thick - 1, **style
    )
    yield _whisker(x(bar.low), middle, x(bar.high), middle)
    yield _text(WIDTH, middle + 4, decimal(100 * bar.value, 1), cls="value end")


def _line_paint(index: int, count: int, ramp: bool) -> dict[str, object]:
    return paint(index + 1, count + 1) if ramp else paint(index, 0)


def _line(line: Line, style: dict[str, object], x: _Scale, y: _Scale, dots: bool) -> Iterator[Html]:
    if line.intervals:
        for (px, _), (low, high) in zip(line.points, line.intervals, strict=True):
            yield _whisker(x(px), y(low), x(px), y(high))
    for run in _finite_runs(line.points):
        path = " ".join(f"{_number(x(px))},{_number(y(py))}" for px, py in run)
        yield element("polyline", points=path, **style)
        for px, py in run if dots or len(run) == 1 else ():
            yield element("circle", cx=_number(x(px)), cy=_number(y(py)), r=3.5, **style)


def _confidence_dots(
    bins: Sequence[Bin], style: dict[str, object], x: _Scale, y: _Scale, shift: float
) -> Iterator[Html]:
    total = sum(b.n for b in bins)
    dots = [(x((b.low + b.high) / 2) + shift, b) for b in bins if b.n]
    path = " ".join(f"{_number(px)},{_number(y(b.correct / b.n))}" for px, b in dots)
    yield element("polyline", points=path, **style)
    for px, b in dots:
        low, high = wilson(b.correct, b.n)
        yield _whisker(px, y(low), px, y(high))
        radius = _number(2.5 + 8 * math.sqrt(b.n / total))
        yield element("circle", cx=_number(px), cy=_number(y(b.correct / b.n)), r=radius, **style)


def _end_labels(
    lines: Sequence[Line], ramp: bool, left: float, y: _Scale, top: float, bottom: float
) -> Iterator[Html]:
    """Names at the height of each line's end, pushed apart if they would overlap.

    A short piece of the line precedes its name.
    """
    ends = []
    for line in lines:
        values = [v for _, v in line.points if math.isfinite(v)]
        ends.append(y(values[-1]) if values else bottom)
    order = sorted(range(len(lines)), key=ends.__getitem__)
    last = top - 14.0
    for position, i in enumerate(order):
        room_below = 14.0 * (len(order) - 1 - position)
        last = max(last + 14, min(ends[i], bottom - room_below))
        piece = f"{_number(left)},{_number(last)} {_number(left + 16)},{_number(last)}"
        yield element("polyline", points=piece, **_line_paint(i, len(lines), ramp))
        yield _text(left + 20, last + 4, lines[i].label, cls="tick")


def _x_ticks(xs: Sequence[float], each: bool) -> Iterator[tuple[float, str, str]]:
    marks = sorted(set(xs)) if each else sorted({min(xs), max(xs)})
    for mark in marks:
        yield mark, format_count(mark), "middle" if each or mark == marks[0] else "end"


def _finite_runs(points: Sequence[tuple[float, float]]) -> Iterator[list[tuple[float, float]]]:
    run: list[tuple[float, float]] = []
    for point in points:
        if math.isfinite(point[1]):
            run.append(point)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _finite_values(line: Line) -> Iterator[float]:
    for value in [y for _, y in line.points] + [v for pair in line.intervals for v in pair]:
        if math.isfinite(value):
            yield value


def _bars_in_words(bars: Sequence[Bar | None], series: Sequence[str]) -> str:
    words = []
    for name, bar in zip(series, bars, strict=True):
        if bar is None:
            words.append(f"{name} not measured")
        else:
            interval = f"{percent(bar.low)} to {percent(bar.high)}"
            words.append(f"{name} {percent(bar.value)} (95 % interval {interval})")
    return ", ".join(words)


def _line_in_words(line: Line, share: bool) -> str:
    values = [v for _, v in line.points if math.isfinite(v)]
    if not values:
        return "no values"
    first, last = (percent(v) if share else decimal(v, 3) for v in (values[0], values[-1]))
    return f"from {first} to {last}"


def _bins_in_words(bins: Sequence[Bin]) -> str:
    return ", ".join(
        f"confidence {percent(b.low, 0)} to {percent(b.high, 0)} {b.correct} of {b.n} right"
        for b in bins
    )
