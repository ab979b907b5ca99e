"""Sections of the page about samples and votes: the number of samples, the way from samples to
training rows, adaptive consistency, and questions to look at.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from lmsi_jax.answers import key
from lmsi_jax.evaluation.statistics import Difference, paired_difference
from lmsi_jax.records import FORMATS, KINDS
from lmsi_jax.report import charts
from lmsi_jax.report.comparison import (
    DASH,
    change_interval,
    count_of,
    decimal,
    evaluated_rounds,
    format_count,
    percent,
    percent_of,
    points,
    round_name,
    share_interval,
)
from lmsi_jax.report.html import (
    Html,
    bar,
    count_with_share,
    element,
    figure,
    join_html,
    note,
    number_with_interval,
    panels,
    scrolling_table,
    table,
)
from lmsi_jax.report.summary import (
    AdaptiveConsistency,
    AdaptiveConsistencySet,
    Evaluation,
    Round,
    ShownQuestion,
    ShownSample,
    Summary,
    TaskFilterCounts,
)

FORMAT_NAMES = {
    "few_shot_cot": "Few-shot chain of thought",
    "few_shot_direct": "Few-shot direct",
    "zero_shot_cot": "Zero-shot chain of thought",
    "zero_shot_direct": "Zero-shot direct",
}
_MOST_CHARACTERS = 110
"""A folded question is cut to this length."""
_OUTCOMES = {
    "right": ("up", "✓ right"),
    "wrong": ("down", "✗ wrong"),
    "no vote": ("flat", "no vote"),
    "no label": ("flat", "no label"),
}
"""Class and text of each outcome."""


def curves(summary: Summary) -> Html:
    """Returns accuracy by the number of samples: a chart for base and last model, and a table."""
    rows = [row for row in summary.evals if row.curve]
    if not rows:
        return Html("")
    rounds = evaluated_rounds(summary)
    figures = []
    for number in sorted({rounds[0], rounds[-1]}):
        evaluations = [row for row in rows if row.round == number]
        means = mean_curve(evaluations)
        if len(means) > 1:
            lines = [
                charts.Line("majority@k", [(k, majority) for k, majority, _ in means]),
                charts.Line("pass@k", [(k, passed) for k, _, passed in means]),
            ]
            name = round_name(number)
            title = f"{name}: accuracy by the number of samples, mean over {len(evaluations)} tasks"
            chart = charts.line_chart(title, lines, "samples", "Accuracy", share=True)
            figures.append(figure(name, chart))
    cells = [
        (
            row.task,
            round_name(row.round),
            format_count(point.k),
            _share(point.majority, point.majority_low, point.majority_high),
            f"{100 * point.majority_error:.2f}",
            _share(point.passed, point.passed_low, point.passed_high),
        )
        for row in rows
        for point in row.curve
    ]
    head = ("Task", "Model", "k", "Majority@k", "Its error from the subsets", "Pass@k")
    details = element(
        "details",
        element("summary", "Every task, with intervals"),
        table(head, cells, text_columns=2),
    )
    about = (
        "Majority@k: how often the vote on k of a question’s samples is right. Pass@k: how often "
        "at least one of them is right. Both are means over subsets of the samples, and "
        "therefore unbiased for k fresh samples; [95 % interval, bootstrap over questions]. For a "
        "question with more than 600 subsets of k samples, majority@k uses 400 random ones."
    )
    return join_html([note(about), panels(figures), details])


def _share(share: float, low: float, high: float) -> str:
    return f"{100 * share:.1f} {share_interval(low, high)}"


def mean_curve(rows: Sequence[Evaluation]) -> list[tuple[int, float, float]]:
    """Returns (k, majority@k, pass@k), means over tasks, for every k that all tasks have."""
    by_k = [{point.k: point for point in row.curve} for row in rows]
    shared = sorted(set.intersection(*map(set, by_k))) if by_k else []
    n = len(by_k)
    return [
        (k, sum(c[k].majority for c in by_k) / n, sum(c[k].passed for c in by_k) / n)
        for k in shared
    ]


def training_rows(summary: Summary) -> Html:
    """Returns the way from samples to training rows; nothing without rounds."""
    rounds = summary.rounds
    if not rounds:
        return Html("")
    heading = element("h3", "Mix of formats")
    parts = [_funnel(rounds), _filters(rounds), _votes_by_task(rounds), heading, _formats(rounds)]
    return join_html(parts)


def _funnel(rounds: Sequence[Round]) -> Html:
    """Counts of samples and training rows as bars, then what went wrong; a column a round."""
    counts = [
        {
            "Samples": row.samples,
            "Parsed answers": row.parsed,
            "Kept: agree with the vote": row.kept,
            "Distinct kept samples": row.distinct_kept,
            "Training rows": sum(rows.rows for rows in row.examples.values()),
        }
        for row in rounds
    ]
    rows: list[list[object]] = []
    for step in counts[0]:
        cells = []
        for column, row in zip(counts, rounds, strict=True):
            most = max(column.values())
            share = column[step] / most if most else 0.0
            cells.append(bar(share, count_with_share(column[step], row.samples)))
        rows.append([step, *cells])
    for name, mishaps in (
        ("Questions", [(row.questions, row.questions) for row in rounds]),
        ("Cut by the token limit", [(row.unfinished, row.samples) for row in rounds]),
        ("Questions without a vote", [(row.empty_votes, row.questions) for row in rounds]),
        ("Questions with a tied vote", [(row.tied_votes, row.questions) for row in rounds]),
    ):
        cells = [count_with_share(count, total) for count, total in mishaps]
        rows.append([element("span", name, cls="quiet"), *cells])
    caption = (
        "Percentages of samples and rows are of all samples, those of questions of all "
        "questions. A kept sample makes up to four rows, one in each format; equal rows are one "
        "row with the sum of their weights."
    )
    return table(["Step", *(round_name(row.round) for row in rounds)], rows, caption)


def _filters(rounds: Sequence[Round]) -> Html:
    """The samples that the vote and each filter left."""
    steps = [(row, step) for row in rounds for step in row.funnel]
    if not steps:
        return Html("")
    labelled = any(step.right + step.wrong for _, step in steps)
    punished = any(step.punished for _, step in steps)
    rows = [
        [
            f"{step.filter}, {step.task}",
            round_name(row.round),
            format_count(step.rows),
            bar(
                step.kept / step.rows if step.rows else 0.0, count_with_share(step.kept, step.rows)
            ),
            *([count_with_share(step.right, step.right + step.wrong)] if labelled else []),
            *([_punished(step, labelled)] if punished else []),
            format_count(step.questions),
            decimal(step.weight, 1),
            element("span", _reasons(step.dropped), cls="words"),
        ]
        for row, step in steps
    ]
    head = ["Filter, task", "Selected in", "Samples in", "Kept", *(["Right"] if labelled else [])]
    head += ["To punish"] if punished else []
    head += ["Questions", "Weight", "Why dropped"]
    caption = (
        "The vote, then the filters in order. Questions: those that still have samples. Weight: "
        "sum of the kept samples’ weights in the loss."
    )
    if labelled:
        caption += (
            " Right: of the kept samples, by the questions’ answers, which were looked up for this "
            "table alone."
        )
    if punished:
        caption += " To punish: kept samples with a negative weight; they do not count in Right."
    return _table_by_round(head, rows, rounds, caption)


def _punished(step: TaskFilterCounts, labelled: bool) -> str:
    """The number of punished samples, and how many of them are right if that is known."""
    right = f", {format_count(step.punished_right)} of them right" if labelled else ""
    return f"{format_count(step.punished)}{right}" if step.punished else DASH


def _reasons(dropped: Mapping[str, int]) -> str:
    return "; ".join(f"{why}: {format_count(n)}" for why, n in dropped.items()) or DASH


def _votes_by_task(rounds: Sequence[Round]) -> Html:
    rows = [
        (
            task,
            round_name(row.round),
            format_count(votes.questions),
            percent(votes.mean_confidence) if votes.questions else DASH,
            decimal(votes.distinct_kept_per_question, 1) if votes.questions else DASH,
            count_with_share(votes.empty, votes.questions),
            count_with_share(votes.tied, votes.questions),
        )
        for row in rounds
        for task, votes in row.votes_by_task.items()
    ]
    if not rows:
        return Html("")
    head = ("Task", "Sampled in", "Questions", "Mean confidence", "Distinct kept", "Empty", "Tied")
    caption = (
        "Confidence: samples that agree with the vote over all samples. Distinct kept: different "
        "texts with the vote’s answer, mean over questions. Empty: no sample was parsed."
    )
    return _table_by_round(head, rows, rounds, caption)


def _formats(rounds: Sequence[Round]) -> Html:
    """The training rows of each format with their share of the loss's weight."""
    rows = []
    for row in rounds:
        total = sum(counts.weight for counts in row.examples.values())
        known = [name for name in FORMATS if name in row.examples]
        for name in dict.fromkeys([*known, *row.examples]):
            counts = row.examples[name]
            share = counts.weight / total if total else 0.0
            rows.append(
                (
                    FORMAT_NAMES.get(name, name),
                    round_name(row.round),
                    format_count(counts.rows),
                    decimal(counts.weight, 0 if counts.weight == round(counts.weight) else 1),
                    bar(share, percent_of(counts.weight, total)),
                )
            )
    if not rows:
        return element("p", "No training rows were made.", cls="empty")
    generated = sum(row.sources.self_generated for row in rounds)
    human = sum(row.sources.human for row in rounds)
    if human:
        caption = (
            f"{format_count(generated)} rows are self-generated, {format_count(human)} are human "
            f"({percent_of(human, generated + human)})."
        )
    else:
        caption = f"All {format_count(generated)} rows are self-generated; none is human."
    head = ("Format", "Trained in", "Rows", "Weight", "Share of weight")
    return _table_by_round(head, rows, rounds, caption)


def _table_by_round(
    head: Sequence[object],
    rows: Sequence[Sequence[object]],
    rounds: Sequence[Round],
    caption: str,
) -> Html:
    """A table whose second column names the round, unless there is a single one."""
    if len(rounds) > 1:
        return table(head, rows, caption, text_columns=2)
    return table([head[0], *head[2:]], [[row[0], *row[2:]] for row in rows], caption)


@dataclasses.dataclass(frozen=True)
class Effect:
    """Adaptive consistency on some questions, each counting alike.

    Attributes:
      questions: how many.
      taken: samples that the rule takes.
      possible: samples without the rule.
      same: questions whose vote keeps its winner; None unless all samples were drawn.
      right, right_stopped: right votes on all samples and on those taken; None without labels.
      change: stopped minus all, with its 95 % interval for pairs; None without labels.
    """

    questions: int
    taken: int
    possible: int
    same: int | None
    right: int | None
    right_stopped: int | None
    change: Difference | None

    @property
    def saved(self) -> str:
        """The share of the samples that are not drawn, in percent."""
        return percent_of(self.possible - self.taken, self.possible)


def effect(rows: Sequence[AdaptiveConsistencySet]) -> Effect:
    """Returns the rule's effect over the questions of some sets; None for what a set lacks."""
    taken = [n for row in rows for n in row.taken]
    same = [c for row in rows for c in row.same]
    before = [bool(c) for row in rows for c in row.correct]
    after = [bool(c) for row in rows for c in row.correct_stopped]
    replayed = len(same) == len(taken) > 0
    labelled = len(before) == len(taken) > 0
    return Effect(
        questions=len(taken),
        taken=sum(taken),
        possible=sum(row.samples * len(row.taken) for row in rows),
        same=sum(same) if replayed else None,
        right=sum(before) if labelled else None,
        right_stopped=sum(after) if labelled else None,
        change=paired_difference(before, after) if labelled else None,
    )


def adaptive_consistency_sentences(summary: Summary) -> list[str]:
    """Returns the rule's effect on the last model's votes and on the last sampling, in words."""
    rule = summary.adaptive_consistency
    sentences = []
    for source in ("test", "train"):
        if rounds := _rounds_with_sets(rule, source):
            total = effect(_sets(rule, source, rounds[-1]))
            model = "the base model" if rounds[-1] == 0 else f"round {rounds[-1]}"
            sentences.append(_effect_in_words(total, f"{source} questions of {model}"))
    return sentences


def _effect_in_words(total: Effect, questions: str) -> str:
    if total.same is None:
        return (
            f"Adaptive consistency saved {total.saved} of the samples on the {questions}: "
            f"{format_count(total.taken)} of {format_count(total.possible)} were sampled."
        )
    words = (
        f"Adaptive consistency would save {total.saved} of the samples on the {questions}; the "
        f"vote is the same on {percent_of(total.same, total.questions)} of the "
        f"{count_of(total.questions, 'question')}"
    )
    if total.right is None or total.right_stopped is None:
        return f"{words}."
    before, after = (percent_of(n, total.questions) for n in (total.right, total.right_stopped))
    return f"{words}, and right on {after} instead of {before}."


def adaptive_consistency(summary: Summary) -> Html:
    """Returns the rule and its effect on each task; nothing without samples."""
    rule, sentences = summary.adaptive_consistency, adaptive_consistency_sentences(summary)
    if not sentences:
        return Html("")
    bodies, skipped = [], False
    for source in ("test", "train"):
        rounds = _rounds_with_sets(rule, source)
        skipped |= len(rounds) > 2
        bodies += [_effect_rows(rule, source, r) for r in sorted({*rounds[:1], *rounds[-1:]})]
    caption = (
        "Same vote: questions on which the vote on the samples taken has the winner of the vote on "
        "all. Vote of all, stopped: their accuracy in percent, if there are labels. Change: "
        "stopped minus all on the same questions, [95 % interval, Newcombe’s for pairs]. All "
        "tasks: every question counts alike."
    )
    caption += " Rounds between the first and the last are left out." if skipped else ""
    head = [element("th", c, scope="col", cls="num" if i else "text") for i, c in enumerate(_HEAD)]
    return join_html(
        [
            *(element("p", sentence) for sentence in sentences),
            note(_rule_in_words(rule)),
            scrolling_table(element("thead", element("tr", *head)), bodies, caption),
        ]
    )


_HEAD = (
    *("Task", "Questions", "Samples taken", "Samples saved", "Same vote"),
    *("Vote of all", "Stopped", "Change in points"),
)


def _rule_in_words(rule: AdaptiveConsistency) -> str:
    words = (
        f"Adaptive-Consistency (Aggarwal et al. 2023): after every {rule.every} samples of a "
        "question, in the order of their indices, sampling ends once its leading answer will stay "
        f"ahead of the second one with a probability of {100 * rule.threshold:g}"
        "\N{NO-BREAK SPACE}% or more."
    )
    if rule.on:
        return (
            f"{words} Train questions were sampled with it. Test questions get all of their "
            "samples; there the rule is replayed, to see what the vote loses by it."
        )
    return (
        f"{words} It was off, so all samples were drawn; here it is replayed on them. "
        f"Sampling.adaptive_consistency = {rule.threshold:g} turns it on for train questions."
    )


def _effect_rows(rule: AdaptiveConsistency, source: str, number: int) -> Html:
    """A table body: a title, all tasks together, each task."""
    rows = _sets(rule, source, number)
    most = count_of(max(row.samples for row in rows), "sample")
    stopped = rule.on and source == "train"
    how = f"at most {most} each, stopped early" if stopped else f"{most} each, all sampled"
    name = f"{source.capitalize()} questions, {round_name(number).lower()}"
    title = join_html([element("strong", name), " ", how])
    top = element("tr", element("th", title, colspan=len(_HEAD), scope="rowgroup", cls="group"))
    lines = [_effect_row(element("b", "All tasks"), effect(rows))] if len(rows) > 1 else []
    lines += [_effect_row(row.task, effect([row])) for row in rows]
    return element("tbody", top, *lines)


def _effect_row(name: object, total: Effect) -> Html:
    n, change = total.questions, total.change
    saved = (total.possible - total.taken) / total.possible if total.possible else 0.0
    cells: list[object] = [
        format_count(n),
        format_count(total.taken),
        bar(saved, total.saved),
        DASH if total.same is None else percent_of(total.same, n),
        DASH if total.right is None else f"{100 * total.right / n:.1f}",
        DASH if total.right_stopped is None else f"{100 * total.right_stopped / n:.1f}",
        DASH
        if change is None
        else number_with_interval(
            points(change.difference), change_interval(change.low, change.high)
        ),
    ]
    first = element("th", name, scope="row", cls="text")
    return element("tr", first, *(element("td", cell, cls="num") for cell in cells))


def _sets(rule: AdaptiveConsistency, source: str, number: int) -> list[AdaptiveConsistencySet]:
    return [row for row in rule.sets if (row.source, row.round) == (source, number)]


def _rounds_with_sets(rule: AdaptiveConsistency, source: str) -> list[int]:
    """The rounds with at least one question, in order."""
    return sorted({row.round for row in rule.sets if row.source == source and row.taken})


def examples(summary: Summary) -> Html:
    """Returns folded questions with their samples, votes and gold answers."""
    if not summary.examples:
        return element("p", "The run saved no questions to show.", cls="empty")
    about = (
        "The vote sees no label; the gold answer is shown here to judge it. Equal samples are "
        "shown once with their number. Kept samples agree with the vote."
    )
    kinds = {task.name: task.kind for task in summary.tasks}
    shown = (_example(question, kinds.get(question.task, "")) for question in summary.examples)
    return join_html([note(about), *shown])


def outcome(question: ShownQuestion, kind: str) -> str:
    """Returns "no vote", "no label", "right" or "wrong"."""
    if question.winner is None:
        return "no vote"
    if question.gold is None:
        return "no label"
    if question.right is not None:
        return "right" if question.right else "wrong"
    gold = {question.gold}
    for known in KINDS:
        if known == kind:
            gold.add(key(question.gold, known) or question.gold)
    return "right" if question.winner in gold else "wrong"


def _example(shown: ShownQuestion, kind: str) -> Html:
    style, mark = _OUTCOMES[outcome(shown, kind)]
    line = " ".join(shown.question.split())
    if len(line) > _MOST_CHARACTERS:
        line = line[: _MOST_CHARACTERS - 1] + "…"
    head = element(
        "summary",
        element("span", mark, cls=f"badge {style}"),
        element("span", line, cls="question"),
        element("span", f"{shown.task}, confidence {percent(shown.confidence, 0)}", cls="quiet"),
    )
    facts = [
        ("Vote", shown.winner if shown.winner is not None else "none: no sample was parsed"),
        ("Gold answer", shown.gold if shown.gold is not None else "no label"),
        ("Confidence", f"{percent(shown.confidence)} of {count_of(shown.total, 'sample')}"),
        ("Tie", "yes, broken by probability, then by key" if shown.tied else "no"),
    ]
    terms = [part for name, value in facts for part in (element("dt", name), element("dd", value))]
    body = element("div", element("pre", shown.question), element("dl", *terms), cls="split")
    return element("details", head, body, *_samples(shown.samples), cls="example")


def _samples(samples: Sequence[ShownSample]) -> Iterator[Html]:
    if not samples:
        yield element("p", "No samples were saved.", cls="empty")
    for sample in sorted(samples, key=lambda p: (not p.kept, p.key is None, -p.count)):
        kept = "kept" if sample.kept else "dropped"
        answer = element("b", "unparsed" if sample.key is None else sample.key)
        count = element("span", f"{sample.count} × {kept}", cls="quiet")
        text = element("pre", sample.text if sample.text.strip() else "(empty)")
        yield element("div", element("div", answer, count, cls="side"), text, cls=f"sample {kept}")
