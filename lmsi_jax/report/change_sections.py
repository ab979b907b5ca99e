"""Section of the page about what changed, question by question, and the places of named options."""

from collections.abc import Sequence

from lmsi_jax.evaluation.changes import Answered, BaseVotes, Changes, Drift, Rate, Slice, describe
from lmsi_jax.report.comparison import (
    DASH,
    DOMAIN_NAMES,
    PROMPT_STYLE_NAMES,
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
    tasks_of,
)
from lmsi_jax.report.html import Html, element, join_html, note, table
from lmsi_jax.report.summary import (
    DOMAINS,
    PROMPT_STYLES,
    Domain,
    Evaluation,
    PromptStyle,
    Summary,
)

_SINGLE: tuple[PromptStyle, ...] = ("cot", "zero_shot_cot", "standard", "self_consistency")
"""The style whose gains are sliced by the base's votes: single samples, which are not these."""


def by_question(summary: Summary) -> Html:
    """Returns flips, gains by difficulty and vote share, lengths and form; nothing of one model."""
    last = max(evaluated_rounds(summary), default=0)
    if last == 0:
        return Html("")
    found = [
        (domain, style, changes)
        for domain in DOMAINS
        for style in PROMPT_STYLES
        if (changes := compare(summary, domain, style)) is not None
    ]
    if not found:
        return Html("")
    about = (
        f"Base model and round {last} on the same questions, of all tasks together, each question "
        "counting alike; [95 % intervals]."
    )
    return join_html([note(about), _flips(found), *_sliced(found), _form(found)])


def compare(summary: Summary, domain: Domain, style: PromptStyle) -> Changes | None:
    """Returns what changed on a domain's tasks from the base to the last model; None if unknown."""
    last = max(evaluated_rounds(summary), default=0)
    names = [task.name for task in tasks_of(summary, domain)]
    rows = {
        (row.round, row.task, row.prompt_style): row for row in summary.evals if row.task in names
    }
    pairs, votes = [], []
    for name in names:
        before, after = rows.get((0, name, style)), rows.get((last, name, style))
        if before and after and before.correct and len(before.correct) == len(after.correct):
            pairs.append((_answered(before), _answered(after)))
            votes.append(_base_votes(rows.get((0, name, "self_consistency"))))
    return describe(pairs, votes) if pairs and last else None


def _answered(row: Evaluation) -> Answered:
    return Answered(
        correct=row.correct,
        tokens=row.tokens,
        parsed=row.parsed_share,
        marked=row.marked_share,
        finished=row.finished_share,
    )


def _base_votes(row: Evaluation | None) -> BaseVotes | None:
    known = row is not None and row.right_share and row.confidence
    return BaseVotes(row.right_share, row.confidence) if row is not None and known else None


_Found = Sequence[tuple[Domain, PromptStyle, Changes]]


def _flips(found: _Found) -> Html:
    rows = [
        (
            f"{DOMAIN_NAMES[domain]}: {PROMPT_STYLE_NAMES[style]}",
            format_count(changes.questions),
            _rate(changes.gained),
            _rate(changes.lost),
        )
        for domain, style, changes in found
    ]
    caption = (
        "Wrong to right: of the questions that the base got wrong. Right to wrong: of those that "
        "it got right. Wilson intervals."
    )
    head = ("Tasks, prompt style", "Questions", "Wrong to right", "Right to wrong")
    return join_html([element("h3", "Flips"), table(head, rows, caption)])


def _rate(rate: Rate) -> str:
    if not rate.total:
        return DASH
    share = percent_of(rate.flipped, rate.total)
    return f"{format_count(rate.flipped)} of {format_count(rate.total)}, {share} " + share_interval(
        rate.low, rate.high
    )


def _sliced(found: _Found) -> list[Html]:
    """Gains by difficulty and by vote share, of one prompt style of each domain."""
    tables = []
    for title, what, name in (
        ("Gains by difficulty", "Base’s samples that are right", "by_difficulty"),
        ("Gains by vote share", "Base’s samples that agree with its vote", "by_share"),
    ):
        rows = []
        for domain in DOMAINS:
            styles = {style: changes for where, style, changes in found if where == domain}
            style = next((one for one in _SINGLE if one in styles), None)
            slices: Sequence[Slice] = getattr(styles[style], name) if style else ()
            for one in slices:
                assert style is not None
                rows.append(
                    (
                        f"{DOMAIN_NAMES[domain]}: {PROMPT_STYLE_NAMES[style]}",
                        one.name,
                        format_count(one.questions),
                        percent(one.before),
                        percent(one.after),
                        f"{points(one.difference)} {change_interval(one.low, one.high)}",
                    )
                )
        if rows:
            caption = (
                "Test questions whose vote the base model was asked for (Evaluation.vote_count). "
                "Change in points, Newcombe’s interval for pairs."
            )
            head = ("Tasks, prompt style", what, "Questions", "Base", "Last", "Change")
            tables.append(element("h3", title))
            tables.append(table(head, rows, caption, text_columns=2))
    return tables


def _form(found: _Found) -> Html:
    rows = []
    for domain, style, changes in found:
        drifts = [
            _tokens(changes.tokens),
            *(_share(one) for one in (changes.parsed, changes.marked, changes.finished)),
        ]
        if any(drift != DASH for drift in drifts):
            rows.append((f"{DOMAIN_NAMES[domain]}: {PROMPT_STYLE_NAMES[style]}", *drifts))
    if not rows:
        return Html("")
    head = ("Tasks, prompt style", "Tokens of a sample", "Has an answer", "Marks it", "Not cut")
    caption = (
        "Base → last model, change. Marks it: says which words are the answer, as in “The answer "
        "is 7.” Not cut: ended before the token limit. Shares in percent, their changes in points; "
        "normal intervals for pairs."
    )
    return join_html([element("h3", "Length and form"), table(head, rows, caption)])


def _tokens(drift: Drift | None) -> str:
    if drift is None:
        return DASH
    change = f"{drift.difference:+.1f} [{drift.low:+.1f}, {drift.high:+.1f}]".replace("-", "−")
    return f"{decimal(drift.before, 1)} → {decimal(drift.after, 1)}, {change}"


def _share(drift: Drift | None) -> str:
    if drift is None:
        return DASH
    change = f"{points(drift.difference)} {change_interval(drift.low, drift.high)}"
    return f"{100 * drift.before:.1f} → {100 * drift.after:.1f}, {change}"


def positions(summary: Summary) -> Html:
    """Returns how often each place among the options was named; nothing without options."""
    if not summary.positions:
        return Html("")
    most = max(len(row.own) for row in summary.positions)
    letters = [f"({'abcdefghijklmnopqrstuvwxyz'[i]})" for i in range(most)]
    rows = []
    for row in summary.positions:
        model = round_name(row.round if row.source == "test" else row.round - 1)
        where = f"{row.task}, {row.source} questions"
        kinds = [("as shown", row.shown)]
        kinds += [("mapped back", row.own)] if row.shown != row.own else []
        kinds += [("right options", row.right)] if row.right else []
        for name, counts in kinds:
            shares = [percent_of(n, sum(counts)) for n in counts]
            rows.append((where, model, name, format_count(sum(counts)), *shares))
            rows[-1] += (DASH,) * (most - len(counts))
    caption = (
        "Shares of the samples that name an option, by its place. As shown: in the order in which "
        "the sample saw the options; mapped back: in the question’s own order, as it votes "
        "(Voting.rotate_options). Without a liking for a place, shares as shown are alike."
    )
    head = ("Task", "Sampled by", "Place", "Count", *letters)
    asked = count_of(len({row.task for row in summary.positions}), "task")
    return join_html([note(f"Questions with options, of {asked}."), table(head, rows, caption, 3)])
