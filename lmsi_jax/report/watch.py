"""The part of the page about the watch: how a run would fail without labels, round by round."""

from collections.abc import Callable, Sequence
from typing import Literal

from lmsi_jax.report import charts
from lmsi_jax.report.compare import round_name
from lmsi_jax.report.markup import (
    DASH,
    Html,
    decimal,
    element,
    figure,
    joined,
    percent,
    table,
    whole,
)
from lmsi_jax.report.summary import Summary, WatchRow, WatchScored
from lmsi_jax.watch import EASY

Source = Literal["train", "test"]
_Value = float | None
_HEAD = {"train": "Votes that the round learnt", "test": "Its model on the test questions"}
_ABOUT = {
    "train": (
        "The votes on training questions, of the model before the round, and the rows that came of "
        "them. Easy: more than "
        f"{percent(EASY, 0)} of the paths agree. Distinct-n: different n-grams of words over all, "
        "among the paths of one question. Entropy: of a question’s answers, over the largest "
        "possible. Means over questions."
    ),
    "test": (
        "The vote of many paths, with gold answers. A vote that gets surer without getting right "
        "more often, and a falling pass@m, are the signs of a collapse. Figures at different "
        "temperatures do not compare."
    ),
}


def _share(value: _Value) -> str:
    return DASH if value is None else percent(value)


def _number(digits: int) -> Callable[[_Value], str]:
    return lambda value: DASH if value is None else decimal(value, digits)


def _count(value: _Value) -> str:
    return DASH if value is None else whole(value)


def _gold(name: str) -> Callable[[WatchRow], _Value]:
    def value(row: WatchRow) -> _Value:
        """Of the questions with a gold answer."""
        scored: WatchScored | None = row["scored"]
        return None if scored is None else scored[name]  # type: ignore[literal-required]

    return value


def _distinct(n: int) -> Callable[[WatchRow], _Value]:
    return lambda row: row["distinct"][n - 1]


_FIGURES: tuple[tuple[str, Callable[[WatchRow], _Value], Callable[[_Value], str]], ...] = (
    ("Questions", lambda row: row["questions"], _count),
    ("Mean share of the vote", lambda row: row["confidence"], _share),
    ("Vote is right (majority@m)", _gold("majority"), _share),
    ("Some path is right (pass@m)", _gold("passed"), _share),
    ("Path is right (pass@1)", _gold("single"), _share),
    ("Entropy of the answers", lambda row: row["entropy"], _number(3)),
    *((f"Distinct-{n}", _distinct(n), _number(3)) for n in (1, 2, 3)),
    ("Tokens a path", lambda row: row["length"], _number(1)),
    ("Unparsed paths", lambda row: row["unparsed"], _share),
    ("Questions without an answer", lambda row: row["empty"], _share),
    ("Different kept paths a question", lambda row: row["distinct_kept"], _number(1)),
    ("Easy questions", lambda row: row["easy"], _share),
    ("Their training weight", lambda row: row["easy_weight"], _share),
    ("Questions with training rows", lambda row: row["kept"], _share),
    ("Training rows", lambda row: row["rows"], _count),
)


def section(summary: Summary) -> Html:
    """Returns a table of figures by round for each source, and charts from two rounds on."""
    parts: list[Html] = []
    for source in ("train", "test"):
        found = rows_by_figure(summary, source)
        if found:
            head, rows = found
            parts += [element("h3", _HEAD[source]), table(head, rows, _ABOUT[source])]
    return joined([*parts, _charts(summary)])


def rows_by_figure(summary: Summary, source: Source) -> tuple[list[str], list[list[str]]] | None:
    """Returns (head, rows): a row for each figure that was measured, a column for each round.

    None where nothing was measured, and of a single round: there is nothing to compare it with.
    """
    rounds = _rows(summary, source)
    if len(rounds) < 2:
        return None
    head = ["Figure", *(round_name(row["round"]) for row in rounds)]
    rows = []
    for name, value, shown in _FIGURES:
        values = [value(row) for row in rounds]
        if any(one is not None for one in values):
            rows.append([name, *map(shown, values)])
    return head, rows


def _rows(summary: Summary, source: Source) -> list[WatchRow]:
    own = [row for row in summary.get("watch", []) if row["source"] == source]
    return sorted(own, key=lambda row: row["round"])


def _charts(summary: Summary) -> Html:
    train, test = _rows(summary, "train"), _rows(summary, "test")
    figures = []
    if len(test) > 1 and all(row["scored"] for row in test):
        names = (("share of the vote", "confidence"), ("right", "majority"), ("pass@m", "passed"))
        lines = [_line(label, test, _gold(name)) for label, name in names]
        figures.append(_chart("Sure and right, test questions", lines, "share", share=True))
    if len(train) > 1:
        distinct = [_line(f"distinct-{n}", train, _distinct(n)) for n in (1, 2, 3)]
        easy = [
            _line("questions", train, lambda row: row["easy"]),
            _line("weight", train, lambda row: row["easy_weight"]),
        ]
        length = [_line("tokens", train, lambda row: row["length"])]
        figures.append(_chart("Distinct n-grams of a question’s paths", distinct, "share", True))
        figures.append(_chart("Easy questions", easy, "share", True))
        figures.append(_chart("Length of a path", length, "tokens"))
    return element("div", *figures, cls="panels") if figures else Html("")


def _line(label: str, rows: Sequence[WatchRow], value: Callable[[WatchRow], _Value]) -> charts.Line:
    found = ((float(row["round"]), value(row)) for row in rows)
    return charts.Line(label, [(x, float("nan") if y is None else y) for x, y in found])


def _chart(title: str, lines: Sequence[charts.Line], unit: str, share: bool = False) -> Html:
    chart = charts.line_chart(title, lines, "round", unit, share=share, whole_x=True)
    return figure(title, chart)
