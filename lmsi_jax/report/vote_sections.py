"""The part of the page about the unlabelled votes: funnel, tasks, rows, questions to look at.

The part of the report about the number of paths: majority@k and pass@k.

The part of the report about adaptive consistency: paths saved, and what the vote loses by it.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from lmsi_jax.answers import key
from lmsi_jax.evaluation.statistics import Difference, paired_difference
from lmsi_jax.records import FORMATS, KINDS
from lmsi_jax.report import accuracy_section, charts
from lmsi_jax.report.accuracy_section import round_name
from lmsi_jax.report.html import (
    DASH,
    Html,
    bar,
    count_of,
    decimal,
    element,
    figure,
    format_count,
    format_part,
    format_with_share,
    join_html,
    percent,
    points,
    scrolling_table,
    table,
)
from lmsi_jax.report.summary import (
    AdaptiveConsistency,
    AdaptiveConsistencySet,
    CurvePoint,
    Evaluation,
    FilterStep,
    Round,
    SampledPath,
    ShownQuestion,
    Summary,
)

FORMAT_NAMES = {
    "few_shot_cot": "Few-shot chain of thought",
    "few_shot_direct": "Few-shot direct",
    "zero_shot_cot": "Zero-shot chain of thought",
    "zero_shot_direct": "Zero-shot direct",
}
_SHOWN_IN_SUMMARY = 110
_MARKS = {"right": "✓ right", "wrong": "✗ wrong", "no vote": "no vote", "no label": "no label"}
_BADGES = {"right": "up", "wrong": "down", "no vote": "flat", "no label": "flat"}


def funnel(rounds: Sequence[Round]) -> Html:
    """Returns what became of the sampled paths, one column for each round."""
    head = ["Step", *(round_name(r["round"]) for r in rounds)]
    counts = [_funnel_counts(r) for r in rounds]
    steps = list(counts[0])
    rows: list[list[object]] = []
    for step in steps:
        rows.append([step, *(_step(c[step], max(c.values(), default=0), c) for c in counts)])
    for name, count, of in _mishaps(rounds):
        cells = [format_with_share(c, o) for c, o in zip(count, of, strict=True)]
        rows.append([element("span", name, cls="quiet"), *cells])
    caption = (
        "Percentages of paths and rows are of the sampled paths, those of questions of all "
        "questions. A kept path makes up to four rows, one in each format; rows that would be "
        "equal are one row with their weight."
    )
    return table(head, rows, caption)


def by_task(rounds: Sequence[Round]) -> Html:
    """Returns how the votes went on each task."""
    rows = []
    for row in rounds:
        for task, votes in row["votes_by_task"].items():
            n = votes["questions"]
            rows.append(
                (
                    task,
                    round_name(row["round"]),
                    format_count(n),
                    percent(votes["mean_confidence"]) if n else DASH,
                    decimal(votes["distinct_kept_per_question"], 1) if n else DASH,
                    format_with_share(votes["empty"], n),
                    format_with_share(votes["tied"], n),
                )
            )
    if not rows:
        return Html("")
    head = ("Task", "Sampled in", "Questions", "Mean confidence", "Distinct kept", "Empty", "Tied")
    caption = (
        "Confidence: paths that agree with the vote over all paths. Distinct kept: different texts "
        "that reach the vote’s answer, mean over questions. Empty: no path was parsed."
    )
    return _by_round(head, rows, rounds, caption)


def selection(rounds: Sequence[Round]) -> Html:
    """Returns what the vote and each filter left of the paths."""
    steps = [(row, step) for row in rounds for step in row.get("funnel", [])]
    if not steps:
        return Html("")
    known = any(step["right"] + step["wrong"] for _, step in steps)
    rows = []
    for row, step in steps:
        cells = [
            f"{step['filter']}, {step['task']}",
            round_name(row["round"]),
            format_count(step["rows"]),
            _kept(step),
            *([format_with_share(step["right"], step["right"] + step["wrong"])] if known else []),
            format_count(step["questions"]),
            decimal(step["weight"], 1),
            "; ".join(f"{reason}: {format_count(n)}" for reason, n in step["dropped"].items())
            or DASH,
        ]
        rows.append(cells)
    head = ["Filter, task", "Selected in", "Paths in", "Kept", *(["Right"] if known else [])]
    head += ["Questions", "Weight", "Why dropped"]
    caption = (
        "The vote, then the filters in their order. Questions: those that still have paths. "
        "Weight: sum of the kept paths’ factors in the loss."
    )
    if known:
        caption += (
            " Right: of the kept paths, by the questions’ answers, which were looked up for this "
            "table alone."
        )
    return _by_round(head, rows, rounds, caption)


def _kept(step: FilterStep) -> Html:
    share = step["kept"] / step["rows"] if step["rows"] else 0.0
    return bar(share, format_with_share(step["kept"], step["rows"]))


def format_mix(rounds: Sequence[Round]) -> Html:
    """Returns the training rows of each format with their share of the loss's weight."""
    rows = []
    for row in rounds:
        total = sum(f["weight"] for f in row["examples"].values())
        names = [f for f in FORMATS if f in row["examples"]]
        for name in names + [f for f in row["examples"] if f not in names]:
            found = row["examples"][name]
            share = found["weight"] / total if total else 0.0
            rows.append(
                (
                    FORMAT_NAMES.get(name, name),
                    round_name(row["round"]),
                    format_count(found["rows"]),
                    decimal(found["weight"], 0 if found["weight"] == round(found["weight"]) else 1),
                    bar(share, format_part(found["weight"], total)),
                )
            )
    if not rows:
        return element("p", "No training rows were made.", cls="empty")
    head = ("Format", "Trained in", "Rows", "Weight", "Share of weight")
    return _by_round(head, rows, rounds, _origin(rounds))


def examples(summary: Summary) -> Html:
    """Returns questions with their paths, votes and gold answers, each to be unfolded."""
    if not summary["examples"]:
        return element("p", "The run saved no questions to show.", cls="empty")
    kinds = {task["name"]: task["kind"] for task in summary["tasks"]}
    return join_html(_example(shown, kinds.get(shown["task"], "")) for shown in summary["examples"])


def outcome(shown: ShownQuestion, kind: str) -> str:
    """Returns "no vote", "no label", "right" or "wrong"."""
    if shown["winner"] is None:
        return "no vote"
    if shown["gold"] is None:
        return "no label"
    gold = {shown["gold"]}
    for known in KINDS:
        if known == kind:
            gold.add(key(shown["gold"], known) or shown["gold"])
    return "right" if shown["winner"] in gold else "wrong"


def _funnel_counts(row: Round) -> dict[str, int]:
    return {
        "Sampled paths": row["paths"],
        "Parsed answers": row["parsed"],
        "Kept: agree with the vote": row["kept"],
        "Distinct kept paths": row["distinct_kept"],
        "Training rows": sum(f["rows"] for f in row["examples"].values()),
    }


def _step(count: int, most: int, counts: dict[str, int]) -> Html:
    return bar(count / most if most else 0.0, format_with_share(count, counts["Sampled paths"]))


def _mishaps(rounds: Sequence[Round]) -> Iterator[tuple[str, list[int], list[int]]]:
    paths, questions = [r["paths"] for r in rounds], [r["questions"] for r in rounds]
    yield "Questions", questions, questions
    yield "Cut by the token limit", [r["unfinished"] for r in rounds], paths
    yield "Questions without a vote", [r["empty_votes"] for r in rounds], questions
    yield "Questions with a tied vote", [r["tied_votes"] for r in rounds], questions


def _by_round(
    head: Sequence[object],
    rows: Sequence[Sequence[object]],
    rounds: Sequence[Round],
    caption: str,
) -> Html:
    """A table whose second column names the round; a single round needs no such column."""
    if len(rounds) > 1:
        return table(head, rows, caption, text_columns=2)
    return table([head[0], *head[2:]], [[row[0], *row[2:]] for row in rows], caption)


def _origin(rounds: Sequence[Round]) -> str:
    self_generated = sum(r["sources"]["self_generated"] for r in rounds)
    human = sum(r["sources"]["human"] for r in rounds)
    if not human:
        return f"All {format_count(self_generated)} rows are self-generated; none is human."
    return (
        f"{format_count(self_generated)} rows are self-generated, {format_count(human)} are human ("
        f"{format_part(human, self_generated + human)})."
    )


def _example(shown: ShownQuestion, kind: str) -> Html:
    result = outcome(shown, kind)
    line = " ".join(shown["question"].split())
    if len(line) > _SHOWN_IN_SUMMARY:
        line = line[: _SHOWN_IN_SUMMARY - 1] + "…"
    head = element(
        "summary",
        element("span", _MARKS[result], cls=f"badge {_BADGES[result]}"),
        element("span", line, cls="question"),
        element(
            "span", f"{shown['task']}, confidence {percent(shown['confidence'], 0)}", cls="quiet"
        ),
    )
    facts = [
        ("Vote", shown["winner"] if shown["winner"] is not None else "none: no path was parsed"),
        ("Gold answer", shown["gold"] if shown["gold"] is not None else "no label"),
        ("Confidence", f"{percent(shown['confidence'])} of {count_of(shown['total'], 'path')}"),
        ("Tie", "yes, broken by probability, then by key" if shown["tied"] else "no"),
    ]
    listed = [part for name, value in facts for part in (element("dt", name), element("dd", value))]
    body = element("div", element("pre", shown["question"]), element("dl", *listed), cls="split")
    return element("details", head, body, *_paths(shown["paths"]), cls="example")


def _paths(paths: Sequence[SampledPath]) -> Iterator[Html]:
    if not paths:
        yield element("p", "No paths were saved.", cls="empty")
        return
    for path in sorted(paths, key=lambda p: (not p["kept"], p["key"] is None, -p["count"])):
        answer = "unparsed" if path["key"] is None else path["key"]
        kept = "kept" if path["kept"] else "dropped"
        side = [element("b", answer), element("span", f"{path['count']} × {kept}", cls="quiet")]
        text = element("pre", path["text"] if path["text"].strip() else "(empty)")
        yield element("div", element("div", *side, cls="side"), text, cls=f"path {kept}")


_NOTE = (
    "Majority@k: how often the vote on k of a question’s paths is right. Pass@k: how often one of "
    "them is. Both are means over subsets of the paths that were sampled, so they are unbiased for "
    "k fresh paths; [95 % interval, bootstrap over questions]. Where a question has more than 600 "
    "subsets of k paths, 400 random ones stand for majority@k."
)


def curves_section(summary: Summary) -> Html:
    """Returns a chart for each model and the table; nothing where no vote was evaluated."""
    rows = with_curves(summary)
    if not rows:
        return Html("")
    figures = []
    measured = accuracy_section.rounds_measured(summary)
    for number in sorted({measured[0], measured[-1]}):
        own = [row for row in rows if row["round"] == number]
        if len(means(own)) > 1:
            name = accuracy_section.round_name(number)
            figures.append(figure(name, _chart(name, own)))
    details = element("details", element("summary", "Every task, with intervals"), _table(rows))
    note = element("p", _NOTE, cls="note")
    return join_html([note, element("div", *figures, cls="panels"), details])


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
            accuracy_section.round_name(row["round"]),
            format_count(point["k"]),
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


_HEAD = (
    *("Task", "Questions", "Paths taken", "Paths saved", "Same vote"),
    *("Vote of all", "Stopped", "Change in points"),
)
_SOURCES = ("test", "train")


@dataclasses.dataclass(frozen=True)
class Effect:
    """The rule on some questions, each counting alike.

    `taken` of `possible` paths; the vote on them has the winner of the vote on all on `same` of
    the questions. None where not all paths were sampled, or where there are no labels.
    """

    questions: int
    taken: int
    possible: int
    same: int | None
    right: int | None
    right_stopped: int | None
    change: Difference | None
    """Stopped minus all, with its 95 % interval for pairs."""

    @property
    def saved(self) -> str:
        """The share of the paths that are not sampled, in percent."""
        return format_part(self.possible - self.taken, self.possible)


def effect(rows: Sequence[AdaptiveConsistencySet]) -> Effect:
    """Returns the rule's effect over the questions of some sets; what not all know is None."""
    taken = [n for row in rows for n in row["taken"]]
    same = [c for row in rows for c in row["same"]]
    before = [bool(c) for row in rows for c in row["correct"]]
    after = [bool(c) for row in rows for c in row["correct_stopped"]]
    replayed = len(same) == len(taken) > 0
    judged = len(before) == len(taken) > 0
    return Effect(
        questions=len(taken),
        taken=sum(taken),
        possible=sum(row["paths"] * len(row["taken"]) for row in rows),
        same=sum(same) if replayed else None,
        right=sum(before) if judged else None,
        right_stopped=sum(after) if judged else None,
        change=paired_difference(before, after) if judged else None,
    )


def sentences(summary: Summary) -> list[str]:
    """Returns in words what the rule does to the last model's votes and to the last sampling."""
    found = summary["adaptive_consistency"]
    said = []
    for source in _SOURCES:
        rounds = _rounds(found, source)
        if rounds:
            one = effect(_rows(found, source, rounds[-1]))
            model = "the base model" if rounds[-1] == 0 else f"round {rounds[-1]}"
            said.append(_sentence(one, f"{source} questions of {model}"))
    return said


def early_stop_section(summary: Summary) -> Html:
    """Returns what the rule is, and its effect on each task; nothing without any paths."""
    found = summary["adaptive_consistency"]
    said = [element("p", sentence) for sentence in sentences(summary)]
    if not said:
        return Html("")
    bodies, between = [], False
    for source in _SOURCES:
        rounds = _rounds(found, source)
        between |= len(rounds) > 2
        for number in sorted({*rounds[:1], *rounds[-1:]}):
            bodies.append(_group(found, source, number))
    head = [
        element("th", name, scope="col", cls="num" if i else "text") for i, name in enumerate(_HEAD)
    ]
    caption = (
        "Same vote: questions on which the vote on the paths taken has the winner of the vote on "
        "all. Vote of all, stopped: their accuracy in percent, where there are labels. Change: "
        "stopped minus all on the same questions, [95 % interval, Newcombe’s for pairs]. All "
        "tasks: every question counts alike."
    )
    caption += " Rounds between the first and the last are left out." if between else ""
    figure = scrolling_table(element("thead", element("tr", *head)), bodies, caption)
    return join_html([*said, element("p", _note(found), cls="note"), figure])


def _note(found: AdaptiveConsistency) -> str:
    threshold = f"{100 * found['threshold']:g}\N{NO-BREAK SPACE}%"
    rule = (
        f"Adaptive-Consistency (Aggarwal et al. 2023): after every {found['every']} paths of a "
        "question, in the order of their indices, no further one is started once its leading "
        f"answer will stay ahead of the second with a probability of {threshold} or more."
    )
    if found["on"]:
        return (
            f"{rule} Train questions were sampled with it. On test questions, of which all paths "
            "are sampled, it is replayed, to see what the vote loses by it."
        )
    return (
        f"{rule} It was off, so all paths were sampled; here it is replayed on them. "
        f"Sampling.adaptive_consistency = {found['threshold']:g} turns it on for train questions."
    )


def _sentence(one: Effect, where: str) -> str:
    if one.same is None:
        return (
            f"Adaptive consistency saved {one.saved} of the paths on the {where}: "
            f"{format_count(one.taken)} of "
            f"{format_count(one.possible)} were sampled."
        )
    said = (
        f"Adaptive consistency would save {one.saved} of the paths on the {where}; the vote is "
        "the same on "
        f"{format_part(one.same, one.questions)} of the {count_of(one.questions, 'question')}"
    )
    if one.right is None or one.right_stopped is None:
        return f"{said}."
    before, after = (format_part(n, one.questions) for n in (one.right, one.right_stopped))
    return f"{said}, and right on {after} instead of {before}."


def _group(found: AdaptiveConsistency, source: str, number: int) -> Html:
    """One table body: a title, all tasks together, each task."""
    rows = _rows(found, source, number)
    most = count_of(max(row["paths"] for row in rows), "path")
    stopped = found["on"] and source == "train"
    how = (
        f"at most {most} each, sampled with adaptive consistency"
        if stopped
        else f"{most} each, all sampled"
    )
    name = f"{source.capitalize()} questions, {round_name(number).lower()}"
    title = join_html([element("strong", name), " ", how])
    top = element("tr", element("th", title, colspan=len(_HEAD), scope="rowgroup", cls="group"))
    lines = [_line(element("b", "All tasks"), effect(rows))] if len(rows) > 1 else []
    lines += [_line(row["task"], effect([row])) for row in rows]
    return element("tbody", top, *lines)


def _line(name: object, one: Effect) -> Html:
    n = one.questions
    saved = (one.possible - one.taken) / one.possible if one.possible else 0.0
    cells: list[object] = [
        format_count(n),
        format_count(one.taken),
        bar(saved, one.saved),
        DASH if one.same is None else format_part(one.same, n),
        DASH if one.right is None else f"{100 * one.right / n:.1f}",
        DASH if one.right_stopped is None else f"{100 * one.right_stopped / n:.1f}",
        DASH if one.change is None else _change(one.change),
    ]
    first = element("th", name, scope="row", cls="text")
    return element("tr", first, *(element("td", cell, cls="num") for cell in cells))


def _change(change: Difference) -> Html:
    interval = f"[{points(change.low)}, {points(change.high)}]"
    value = element("b", points(change.difference))
    return join_html([value, " ", element("span", interval, cls="interval")])


def _rows(found: AdaptiveConsistency, source: str, number: int) -> list[AdaptiveConsistencySet]:
    return [row for row in found["sets"] if (row["source"], row["round"]) == (source, number)]


def _rounds(found: AdaptiveConsistency, source: str) -> list[int]:
    """The rounds with at least one question, in order."""
    rows = (row for row in found["sets"] if row["source"] == source and row["taken"])
    return sorted({row["round"] for row in rows})
