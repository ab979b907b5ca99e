"""Small charts as inline SVG: no script, no network, colours and fonts from the page's style sheet.

Every chart is one `<svg role="img">` with a title and a description that says in words what it
shows. Colours never carry a meaning alone: series differ in lightness, dashes and labels too.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

from lmsi_jax.evaluation.accuracy import Bin
from lmsi_jax.evaluation.statistics import wilson
from lmsi_jax.report import html
from lmsi_jax.report.html import Html, decimal, element, format_count, percent


@dataclasses.dataclass(frozen=True)
class Bar:
    """A share with its interval, all in [0, 1]."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Group:
    """The bars of one row, one for each series; None where a series has none."""

    label: str
    bars: Sequence[Bar | None]
    heading: str = ""
    """Stands above the group, where a new kind of group begins."""


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
      title: what is shown; also the accessible name.
      groups: the rows.
      series: the name of each bar of a group.
      ramp: colour the series as first, ..., last instead of as unrelated things.
    """
    left = min(150.0, 10 + html.CHARACTER * max((len(g.label) for g in groups), default=0))
    right, thick = html.WIDTH - 46.0, 13 if len(series) < 3 else 11
    x = html.Scale(0, 1, left, right)
    parts: list[Html] = []
    y = 4.0
    for group in groups:
        if group.heading:
            parts.append(html.text(0, y + 12, group.heading, cls="heading"))
            y += 20
        middle = y + thick * len(series) / 2
        parts.append(html.label(left - 8, middle + 4, group.label, left))
        for i, bar in enumerate(group.bars):
            parts += _bar(bar, i, len(series) if ramp else 0, x, y + i * thick, thick)
        y += thick * len(series) + 9
    grid = [html.rule(x(t), 0, x(t), y - 2) for t in (0, 0.25, 0.5, 0.75, 1)]
    ticks = [html.text(x(t), y + 12, percent(t, 0), cls="tick middle") for t in (0, 0.5, 1)]
    told = "; ".join(f"{g.label}: {_told(g.bars, series)}" for g in groups)
    return html.drawing(title, told, y + 18, [*grid, *parts, *ticks])


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
      title: what is shown; also the accessible name.
      lines: what to draw; points without a finite y are gaps.
      x_label: the name of x, below.
      y_label: the name and unit of y, above.
      ramp: colour the lines as rounds 1, ..., last (the base's colour stays free) instead of as
        unrelated things.
      share: y is a share, written in percent, from 0 on, so that charts beside each other compare.
      whole_x: x are a few whole numbers; each gets a tick, each point a dot, and y starts at 0.
    """
    values = [v for line in lines for v in _finite_values(line)]
    xs = [px for line in lines for px, _ in line.points]
    if not values:
        return html.empty(title, "No values to draw.")
    low = min(0.0, *values) if whole_x or share else min(values)
    marks = html.ticks(low, max(values), 1.0 if share else math.inf)
    longest = max(len(line.label) for line in lines)
    right = html.WIDTH - (30 + html.CHARACTER * longest if len(lines) > 1 else 10)
    top, bottom = 24.0, 178.0
    x, y = html.Scale(min(xs), max(xs), 44, right), html.Scale(marks[0], marks[-1], bottom, top)
    named = [f"{100 * t:g}\N{NO-BREAK SPACE}%" if share else f"{t:g}" for t in marks]
    parts = [html.rule(44, y(t), right, y(t)) for t in marks]
    parts += [html.text(38, y(t) + 4, n, cls="tick end") for t, n in zip(marks, named, strict=True)]
    parts += [html.text(x(v), bottom + 16, n, cls=f"tick {a}") for v, n, a in _x_ticks(xs, whole_x)]
    parts.append(html.text(0, 10, y_label, cls="tick"))
    parts.append(html.text((44 + right) / 2, bottom + 32, x_label, cls="tick middle"))
    for i, line in enumerate(lines):
        parts += _line(line, html.paint(i + ramp, ramp * (len(lines) + 1)), x, y, whole_x)
    if len(lines) > 1:
        parts += _end_labels(lines, ramp, right + 6, y, top, bottom)
    told = "; ".join(f"{line.label}: {_told_line(line, share)}" for line in lines)
    return html.drawing(title, f"{y_label} by {x_label}. {told}", bottom + 38, parts)


def confidence_chart(title: str, series: Sequence[tuple[str, Sequence[Bin]]]) -> Html:
    """Returns accuracy against confidence (LMSI, figure 2).

    A dot's area grows with its bin's share of the votes; whiskers are 95 % Wilson intervals; the
    dashed diagonal is a vote as often right as it is sure; the votes in each bin are written below.
    """
    left, right, top, bottom = 64.0, html.WIDTH - 12.0, 24.0, 210.0
    x, y = html.Scale(0, 1, left, right), html.Scale(0, 1, bottom, top)
    marks = (0, 0.2, 0.4, 0.6, 0.8, 1)
    parts = [html.rule(left, y(t), right, y(t)) for t in marks]
    parts += [html.text(left - 8, y(t) + 4, percent(t, 0), cls="tick end") for t in marks]
    parts += [html.text(x(t), bottom + 16, percent(t, 0), cls="tick middle") for t in marks]
    parts.append(html.text(0, 10, "Accuracy of the vote", cls="tick"))
    parts.append(
        html.text(x(0.5), bottom + 32, "Confidence: agreeing paths / all", cls="tick middle")
    )
    parts.append(html.rule(x(0), y(0), x(1), y(1), cls="diagonal"))
    row = bottom + 52
    told = []
    for i, (name, bins) in enumerate(series):
        shift = 9 * (i - (len(series) - 1) / 2)
        parts += _confidence_dots(bins, i, len(series), x, y, shift)
        parts.append(html.text(0, row, name, cls="tick"))
        parts += [
            html.text(x((b.low + b.high) / 2), row, format_count(b.n), cls="tick middle")
            for b in bins
        ]
        parts.append(
            element("rect", x=54, y=row - 9, width=8, height=8, **html.paint(i, len(series)))
        )
        row += 16
        told.append(f"{name}: {_told_bins(bins)}")
    return html.drawing(title, ". ".join(told), row - 8, parts)


def change_mark(
    difference: float, low: float, high: float, scale: tuple[float, float], kind: str
) -> Html:
    """Returns a change with its interval beside zero, small enough for a table's cell.

    Args:
      difference, low, high: shares.
      scale: where the drawing starts and stops; zero lies within.
      kind: the style, "up", "down" or "flat".
    """
    x = html.Scale(*scale, 5, 95)
    return element(
        "svg",
        html.rule(x(0), 0, x(0), 18, cls="zero"),
        element("line", x1=html.number(x(low)), y1=9, x2=html.number(x(high)), y2=9, cls="whisker"),
        element("circle", cx=html.number(x(difference)), cy=9, r=4.2),
        viewbox="0 0 100 18",
        cls=f"mark {kind}",
        aria_hidden="true",
    )


def legend(names: Sequence[str]) -> Html:
    """Returns the colours of series first, ..., last with their names; nothing for none."""
    entries = []
    for i, name in enumerate(names):
        square = element("rect", x=0, y=0, width=10, height=10, **html.paint(i, len(names)))
        box = element("svg", square, viewbox="0 0 10 10", cls="swatch", aria_hidden="true")
        entries.append(element("span", box, name))
    return element("p", *entries, cls="legend") if entries else Html("")


def _bar(bar: Bar | None, i: int, ramp: int, x: html.Scale, y: float, thick: int) -> Iterator[Html]:
    middle = y + thick / 2
    if bar is None:
        yield html.text(x(0) + 4, middle + 4, "not measured", cls="tick")
        return
    width = x(bar.value) - x(0)
    yield element(
        "rect",
        x=html.number(x(0)),
        y=html.number(y + 0.5),
        width=html.number(width),
        height=thick - 1,
        **html.paint(i, ramp),
    )
    yield html.whisker(x(bar.low), middle, x(bar.high), middle)
    yield html.text(html.WIDTH, middle + 4, decimal(100 * bar.value, 1), cls="value end")


def _line(
    line: Line, paint: dict[str, object], x: html.Scale, y: html.Scale, dots: bool
) -> Iterator[Html]:
    if line.intervals:
        for (px, _), (low, high) in zip(line.points, line.intervals, strict=True):
            yield html.whisker(x(px), y(low), x(px), y(high))
    for run in _runs(line.points):
        path = " ".join(f"{html.number(x(px))},{html.number(y(py))}" for px, py in run)
        yield element("polyline", points=path, **paint)
        for px, py in run if dots or len(run) == 1 else ():
            yield element("circle", cx=html.number(x(px)), cy=html.number(y(py)), r=3.5, **paint)


def _confidence_dots(
    bins: Sequence[Bin], i: int, count: int, x: html.Scale, y: html.Scale, shift: float
) -> Iterator[Html]:
    total = sum(b.n for b in bins)
    dots = [(x((b.low + b.high) / 2) + shift, b) for b in bins if b.n]
    line = " ".join(f"{html.number(px)},{html.number(y(b.correct / b.n))}" for px, b in dots)
    yield element("polyline", points=line, **html.paint(i, count))
    for px, b in dots:
        low, high = wilson(b.correct, b.n)
        yield html.whisker(px, y(low), px, y(high))
        radius = 2.5 + 8 * math.sqrt(b.n / total)
        yield element(
            "circle",
            cx=html.number(px),
            cy=html.number(y(b.correct / b.n)),
            r=html.number(radius),
            **html.paint(i, count),
        )


def _end_labels(
    lines: Sequence[Line], ramp: bool, left: float, y: html.Scale, top: float, bottom: float
) -> Iterator[Html]:
    """Names at the height of each line's end, pushed apart where they would overlap.

    A short piece of the line stands before its name.
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
        sample = (
            f"{html.number(left)},{html.number(last)} {html.number(left + 16)},{html.number(last)}"
        )
        yield element("polyline", points=sample, **html.paint(i + ramp, ramp * (len(lines) + 1)))
        yield html.text(left + 20, last + 4, lines[i].label, cls="tick")


def _x_ticks(xs: Sequence[float], each: bool) -> Iterator[tuple[float, str, str]]:
    marks = sorted(set(xs)) if each else sorted({min(xs), max(xs)})
    for mark in marks:
        yield mark, format_count(mark), "middle" if each or mark == marks[0] else "end"


def _runs(points: Sequence[tuple[float, float]]) -> Iterator[list[tuple[float, float]]]:
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


def _told(bars: Sequence[Bar | None], series: Sequence[str]) -> str:
    said = []
    for name, bar in zip(series, bars, strict=True):
        if bar is None:
            said.append(f"{name} not measured")
        else:
            interval = f"{percent(bar.low)} to {percent(bar.high)}"
            said.append(f"{name} {percent(bar.value)} (95 % interval {interval})")
    return ", ".join(said)


def _told_line(line: Line, share: bool) -> str:
    values = [v for _, v in line.points if math.isfinite(v)]
    if not values:
        return "no values"
    first, last = (percent(v) if share else decimal(v, 3) for v in (values[0], values[-1]))
    return f"from {first} to {last}"


def _told_bins(bins: Sequence[Bin]) -> str:
    return ", ".join(
        f"confidence {percent(b.low, 0)} to {percent(b.high, 0)} {b.correct} of {b.n} right"
        for b in bins
    )
