"""The part of the report about the number of paths: majority@k and pass@k."""

from collections.abc import Sequence

from lmsi_jax.report import charts, compare
from lmsi_jax.report.markup import Html, element, figure, joined, table, whole
from lmsi_jax.report.summary import CurvePoint, Evaluation, Summary

_NOTE = (
    "Majority@k: how often the vote on k of a question’s paths is right. Pass@k: how often one of "
    "them is. Both are means over subsets of the paths that were sampled, so they are unbiased for "
    "k fresh paths; [95 % interval, bootstrap over questions]. Where a question has more than 600 "
    "subsets of k paths, 400 random ones stand for majority@k."
)


def section(summary: Summary) -> Html:
    """Returns a chart for each model and the table; nothing where no vote was evaluated."""
    rows = with_curves(summary)
    if not rows:
        return Html("")
    figures = []
    measured = compare.rounds_measured(summary)
    for number in sorted({measured[0], measured[-1]}):
        own = [row for row in rows if row["round"] == number]
        if len(means(own)) > 1:
            name = compare.round_name(number)
            figures.append(figure(name, _chart(name, own)))
    details = element("details", element("summary", "Every task, with intervals"), _table(rows))
    note = element("p", _NOTE, cls="note")
    return joined([note, element("div", *figures, cls="panels"), details])


def with_curves(summary: Summary) -> list[Evaluation]:
    """Returns the evaluations by vote whose curve was measured."""
    return [row for row in summary["evals"] if row.get("curve")]


def means(rows: Sequence[Evaluation]) -> list[tuple[int, float, float]]:
    """Returns (k, majority@k, pass@k), means over tasks, for every k that all of them have."""
    curves = [{point["k"]: point for point in row.get("curve", [])} for row in rows]
    shared = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    n = len(curves)
    return [
        (k, sum(c[k]["majority"] for c in curves) / n, sum(c[k]["passed"] for c in curves) / n)
        for k in shared
    ]


def _chart(name: str, rows: Sequence[Evaluation]) -> Html:
    points = means(rows)
    lines = [
        charts.Line("majority@k", [(k, majority) for k, majority, _ in points]),
        charts.Line("pass@k", [(k, passed) for k, _, passed in points]),
    ]
    title = f"{name}: accuracy by the number of paths, mean over {len(rows)} tasks"
    return charts.line_chart(title, lines, "paths", "Accuracy", share=True)


def _table(rows: Sequence[Evaluation]) -> Html:
    cells = [
        (
            row["task"],
            compare.round_name(row["round"]),
            whole(point["k"]),
            _share(point["majority"], point["majority_low"], point["majority_high"]),
            f"{100 * point['majority_error']:.2f}",
            _share(point["passed"], point["passed_low"], point["passed_high"]),
        )
        for row in rows
        for point in _points(row)
    ]
    head = ("Task", "Model", "k", "Majority@k", "Its error from the subsets", "Pass@k")
    return table(head, cells, text_columns=2)


def _points(row: Evaluation) -> list[CurvePoint]:
    return row.get("curve", [])


def _share(share: float, low: float, high: float) -> str:
    return f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
