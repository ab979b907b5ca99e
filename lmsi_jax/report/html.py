"""HTML by construction: strings are escaped unless they are `Html`, and every tag is closed."""

import html
import re
from collections.abc import Iterable, Sequence

from lmsi_jax.report.comparison import format_count, percent_of

# HTML forbids most control characters; models write them now and then.
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_VOID = frozenset({"meta", "br", "input", "line", "rect", "circle", "path", "polyline"})


class Html(str):
    """A piece of a page that needs no escaping."""


def escape(content: object) -> Html:
    """Returns any object as text of a page; `Html` is returned unchanged."""
    if isinstance(content, Html):
        return content
    return Html(html.escape(_FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", str(content))))


def element(tag: str, *children: object, **attributes: object) -> Html:
    """Returns `<tag ...>children</tag>`.

    In attribute names `cls` means class and "_" means "-". An attribute that is None is left out,
    one that is True has no value.
    """
    written = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        return Html(f"<{tag}{written}>" if tag in ("meta", "br", "input") else f"<{tag}{written}/>")
    return Html(f"<{tag}{written}>{join_html(children)}</{tag}>")


def _attribute(name: str, value: object) -> str:
    if value is None:
        return ""
    name = "class" if name == "cls" else name.replace("_", "-").replace("viewbox", "viewBox")
    return f" {name}" if value is True else f' {name}="{escape(value)}"'


def join_html(parts: Iterable[object], separator: str = "") -> Html:
    """Returns the parts, each escaped, one after the other."""
    return Html(separator.join(escape(part) for part in parts))


def table(
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    caption: object = "",
    text_columns: int = 1,
    title: str = "",
) -> Html:
    """Returns a table that scrolls sideways by itself if the page is too narrow.

    Args:
      head: the columns' names.
      rows: cells in the order of `head`; the first one is the row's header.
      caption: the explanation below the table.
      text_columns: number of leading columns that hold text; the others hold numbers.
      title: the table's name for screen readers; by default its columns' names.
    """
    sides = ["text" if i < text_columns else "num" for i in range(len(head))]
    top = [element("th", c, scope="col", cls=s) for c, s in zip(head, sides, strict=True)]
    body = [
        element(
            "tr",
            element("th", row[0], scope="row", cls="text"),
            *(element("td", c, cls=s) for c, s in zip(row[1:], sides[1:], strict=True)),
        )
        for row in rows
    ]
    title = title or f"Table: {', '.join(str(name) for name in head if name)}"
    return scrolling_table(
        element("thead", element("tr", *top)), [element("tbody", *body)], caption, title=title
    )


def scrolling_table(
    head: Html,
    bodies: Sequence[Html],
    caption: object = "",
    style: str | None = None,
    *,
    title: str,
) -> Html:
    """Returns a table of ready parts in a frame that a keyboard can scroll.

    Args:
      head: the table's head.
      bodies: its bodies.
      caption: the explanation below the table.
      style: "stacked" puts intervals below their numbers, so that many columns fit; "slim" keeps
        few columns close together.
      title: the table's caption for screen readers, and the name of its frame.
    """
    inner = element("table", element("caption", title, cls="hidden"), head, *bodies, cls=style)
    frame = element("div", inner, cls="scroll", tabindex=0, role="group", aria_label=title)
    return element("figure", frame, element("figcaption", caption) if caption else "", cls="wide")


def figure(name: str, chart: Html, caption: object = "") -> Html:
    """Returns a chart under its name, with an optional caption below."""
    below = element("figcaption", caption) if caption else ""
    return element("figure", element("h3", name), chart, below)


def panels(figures: Iterable[Html]) -> Html:
    """Returns figures side by side as the width allows."""
    return element("div", *figures, cls="panels")


def note(text: str) -> Html:
    """Returns a paragraph of explanation."""
    return element("p", text, cls="note")


def note_with_link(before: str, words: str, href: str, after: str) -> Html:
    """Returns a paragraph of explanation with a link to a file beside the page."""
    return element("p", before, element("a", words, href=href), after, cls="note")


def number_with_interval(number: str, interval: str) -> Html:
    """Returns a number and, less prominent, its interval."""
    return join_html([element("b", number), " ", element("span", interval, cls="interval")])


def count_with_share(count: float, total: float) -> Html:
    """Returns a count with its share: 12, 200 -> "12 6.0 %"; shares of a column are aligned."""
    share = element("span", percent_of(count, total), cls="share")
    return join_html([format_count(count), " ", share])


def bar(share: float, content: object) -> Html:
    """Returns a cell's content beside a bar; shares outside [0, 1] do not leave the cell."""
    width = f"width: {100 * min(max(share, 0.0), 1.0):.1f}%"
    room = element("span", element("span", style=width), cls="room", aria_hidden="true")
    return element("div", room, element("span", content), cls="cellbar")
