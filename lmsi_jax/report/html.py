"""HTML by construction: strings are escaped unless they are `Html`, and every tag is closed.

The shapes and scales that the charts are made of.
"""

import html
import math
import re
from collections.abc import Iterable, Sequence

DASH = "–"
"""Stands where there is nothing to show."""

# HTML forbids most control characters; models write them now and then.
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_VOID = frozenset({"meta", "br", "line", "rect", "circle", "path", "polyline"})


class Html(str):
    """A piece of a page that is safe as it stands."""


def escape(content: object) -> Html:
    """Returns any object as text of a page; `Html` stays as it is."""
    if isinstance(content, Html):
        return content
    return Html(html.escape(_FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", str(content))))


def element(tag: str, *children: object, **attributes: object) -> Html:
    """Returns `<tag ...>children</tag>`.

    `cls` stands for class, "_" in a name for "-"; an attribute that is None is left out, one that
    is True has no value.
    """
    written = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        return Html(f"<{tag}{written}>" if tag in ("meta", "br") else f"<{tag}{written}/>")
    return Html(f"<{tag}{written}>{join_html(children)}</{tag}>")


def join_html(parts: Iterable[object], separator: str = "") -> Html:
    """Returns the parts, each escaped, one after the other."""
    return Html(separator.join(escape(part) for part in parts))


def table(
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    caption: object = "",
    text_columns: int = 1,
) -> Html:
    """Returns a table that scrolls sideways on its own where the page is too narrow.

    Args:
      head: the columns' names.
      rows: cells in the order of `head`; the first names its row.
      caption: what the numbers are, below the table.
      text_columns: how many columns on the left hold text; the others hold numbers.
    """
    sides = ["text" if i < text_columns else "num" for i in range(len(head))]
    top = [element("th", c, scope="col", cls=s) for c, s in zip(head, sides, strict=True)]
    body = [_row(row, sides) for row in rows]
    return scrolling_table(
        element("thead", element("tr", *top)), [element("tbody", *body)], caption
    )


def scrolling_table(
    head: Html, bodies: Sequence[Html], caption: object = "", style: str | None = None
) -> Html:
    """Returns the frame around a table's parts; a keyboard can scroll it.

    Style "stacked" puts intervals below their numbers, so that many columns fit; "slim" keeps few
    columns together.
    """
    inner = element("table", head, *bodies, cls=style)
    frame = element("div", inner, cls="scroll", tabindex=0, role="group", aria_label="Table")
    return element("figure", frame, element("figcaption", caption) if caption else "", cls="wide")


def figure(name: str, chart: Html, caption: object = "") -> Html:
    """Returns a chart under its name, with a caption below where there is one."""
    said = element("figcaption", caption) if caption else ""
    return element("figure", element("h3", name), chart, said)


def _row(row: Sequence[object], sides: Sequence[str]) -> Html:
    first = element("th", row[0], scope="row", cls="text")
    cells = [element("td", c, cls=s) for c, s in zip(row[1:], sides[1:], strict=True)]
    return element("tr", first, *cells)


def _attribute(name: str, value: object) -> str:
    if value is None:
        return ""
    name = "class" if name == "cls" else name.replace("_", "-").replace("viewbox", "viewBox")
    return f" {name}" if value is True else f' {name}="{escape(value)}"'


def format_count(value: float) -> str:
    """12800 -> "12,800"."""
    return f"{value:,.0f}" if math.isfinite(value) else DASH


def decimal(value: float, places: int = 2) -> str:
    """A number that may not be one."""
    return f"{value:,.{places}f}" if math.isfinite(value) else DASH


def percent(share: float, places: int = 1) -> str:
    """0.4812 -> "48.1 %", with a space that does not break."""
    return f"{100 * share:.{places}f}\N{NO-BREAK SPACE}%" if math.isfinite(share) else DASH


def format_part(count: float, of: float) -> str:
    """The share of a count, or a dash where there is nothing to be a share of."""
    return percent(count / of) if of else DASH


def points(difference: float) -> str:
    """0.122 -> "+12.2"; a true minus sign; no sign at zero."""
    rounded = round(100 * difference, 1)
    sign = "+" if rounded > 0 else "\N{MINUS SIGN}" if rounded < 0 else ""
    return f"{sign}{abs(rounded):.1f}"


def p_value(p: float) -> str:
    """0.00002 -> "< 0.0001"; more digits where a level may be near."""
    if p < 0.0001:
        return "<\N{NO-BREAK SPACE}0.0001"
    return f"{p:.4f}" if p < 0.01 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def duration(seconds: float) -> str:
    """372.4 -> "6 min 12 s"."""
    if not math.isfinite(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def format_with_share(count: float, of: float) -> Html:
    """12, 200 -> "12 6.0 %", the shares of a column in line."""
    return join_html(
        [format_count(count), " ", element("span", format_part(count, of), cls="share")]
    )


def bar(share: float, content: object) -> Html:
    """A number with its bar; shares outside [0, 1] cannot break out of the cell."""
    width = f"width: {100 * min(max(share, 0.0), 1.0):.1f}%"
    room = element("span", element("span", style=width), cls="room", aria_hidden="true")
    return element("div", room, element("span", content), cls="cellbar")


def count_of(count: int, noun: str) -> str:
    """1, "task" -> "1 task"; 3, "task" -> "3 tasks"."""
    return f"{format_count(count)} {noun}{'' if count == 1 else 's'}"


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
