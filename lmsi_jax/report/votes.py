"""The part of the page about the unlabelled votes: funnel, tasks, rows, questions to look at."""

from collections.abc import Iterator, Sequence

from lmsi_jax.answers import key
from lmsi_jax.records import FORMATS, KINDS
from lmsi_jax.report.compare import round_name
from lmsi_jax.report.markup import (
    DASH,
    Html,
    bar,
    decimal,
    element,
    joined,
    part,
    percent,
    several,
    table,
    whole,
    with_share,
)
from lmsi_jax.report.summary import FilterStep, Round, SampledPath, ShownQuestion, Summary

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
        cells = [with_share(c, o) for c, o in zip(count, of, strict=True)]
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
                    whole(n),
                    percent(votes["mean_confidence"]) if n else DASH,
                    decimal(votes["distinct_kept_per_question"], 1) if n else DASH,
                    with_share(votes["empty"], n),
                    with_share(votes["tied"], n),
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
            whole(step["rows"]),
            _kept(step),
            *([with_share(step["right"], step["right"] + step["wrong"])] if known else []),
            whole(step["questions"]),
            decimal(step["weight"], 1),
            "; ".join(f"{reason}: {whole(n)}" for reason, n in step["dropped"].items()) or DASH,
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
    return bar(share, with_share(step["kept"], step["rows"]))


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
                    whole(found["rows"]),
                    decimal(found["weight"], 0 if found["weight"] == round(found["weight"]) else 1),
                    bar(share, part(found["weight"], total)),
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
    return joined(_example(shown, kinds.get(shown["task"], "")) for shown in summary["examples"])


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
    return bar(count / most if most else 0.0, with_share(count, counts["Sampled paths"]))


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
    weak = sum(r["sources"]["weak"] for r in rounds)
    strong = sum(r["sources"]["strong"] for r in rounds)
    if not strong:
        return f"All {whole(weak)} rows are the model’s own (weak); none is human (strong)."
    return (
        f"{whole(weak)} rows are the model’s own (weak), {whole(strong)} are human (strong, "
        f"{part(strong, weak + strong)})."
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
        ("Confidence", f"{percent(shown['confidence'])} of {several(shown['total'], 'path')}"),
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
