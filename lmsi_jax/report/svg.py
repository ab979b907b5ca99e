"""The shapes and scales that the charts are made of."""

import math
from collections.abc import Iterable

from lmsi_jax.report.markup import Html, element

WIDTH = 420
"""Of every chart, in its own units: large enough for 12-unit text on a phone's 360 pixels."""
CHARACTER = 6.4
"""Mean width of a 12-unit character."""


class Scale:
    """Maps [low, high] linearly; a range without extent maps to its middle."""

    def __init__(self, low: float, high: float, start: float, stop: float):
        self._low, self._span = low, high - low
        self._start, self._length = start, stop - start

    def __call__(self, value: float) -> float:
        share = (value - self._low) / self._span if self._span else 0.5
        return self._start + share * self._length


def drawing(title: str, description: str, height: float, parts: Iterable[object]) -> Html:
    """The chart itself; title and description are for who cannot see it."""
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *parts,
        viewbox=f"0 0 {WIDTH} {number(height)}",
        role="img",
        aria_label=f"{title}. {description}",
        cls="chart",
    )


def empty(title: str, why: str) -> Html:
    """A chart with nothing to draw says so."""
    return drawing(title, why, 40, [text(0, 24, why, cls="tick")])


def paint(index: int, ramp: int) -> dict[str, object]:
    """Class and style of a series: a step on the ramp from base to last model, or its own hue."""
    if ramp == 0:
        return {"cls": f"hue h{index % 6}"}
    if index == 0:
        return {"cls": "ramp base"}
    if index == ramp - 1:
        return {"cls": "ramp last"}
    mix = f"color-mix(in oklab, var(--last) {round(100 * index / (ramp - 1))}%, var(--base))"
    return {"cls": "ramp", "style": f"--c: {mix}"}


def ticks(low: float, high: float, limit: float, count: int = 4) -> list[float]:
    """Returns round numbers around [low, high], from 0 where that costs little room."""
    if 0 <= low < 0.5 * high:
        low = 0.0
    size = max(abs(low), abs(high))
    # What differs by rounding alone is one value, and has no extent of its own.
    span = high - low if high - low > 1e-6 * size else size
    span = span if span > 1e-12 else 1.0
    raw = span / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    marks = [float(f"{i * step:.12g}") for i in range(first, last + 1)]
    return [t for t in marks if t <= limit + 1e-9]


def text(x: float, y: float, words: str, cls: str) -> Html:
    """Words on one line from x, or as the class says ending or centred there; y is their base."""
    return element("text", words, x=number(x), y=number(y), cls=cls)


def label(x: float, y: float, words: str, room: float) -> Html:
    """A label that ends at x; one too long for its room is cut, and whole in its title."""
    fits = int(room / CHARACTER)
    shown = words if len(words) <= fits else words[: fits - 1] + "…"
    return element(
        "text", element("title", words), shown, x=number(x), y=number(y), cls="label end"
    )


def rule(x1: float, y1: float, x2: float, y2: float, cls: str = "rule") -> Html:
    """A straight line of the grid."""
    return element("line", x1=number(x1), y1=number(y1), x2=number(x2), y2=number(y2), cls=cls)


def whisker(x1: float, y1: float, x2: float, y2: float) -> Html:
    """An interval: a dark line on a light one, so that it shows on bars and on paper."""
    ends = {"x1": number(x1), "y1": number(y1), "x2": number(x2), "y2": number(y2)}
    return Html(element("line", cls="halo", **ends) + element("line", cls="whisker", **ends))


def number(value: float) -> str:
    """A coordinate, short."""
    return f"{value:.1f}".removesuffix(".0")
