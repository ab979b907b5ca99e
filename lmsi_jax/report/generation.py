"""The part of the page about what the model made itself: questions and few-shot prompts."""

from collections.abc import Sequence

from lmsi_jax.report.compare import round_name
from lmsi_jax.report.markup import DASH, Html, joined, percent, table, whole, with_share
from lmsi_jax.report.summary import NewQuestions, Round

_PARTS = ("malformed", "duplicates", "overlapping", "surplus", "new")


def section(rounds: Sequence[Round]) -> Html:
    """Returns a table of new questions and one of generated prompts, where there are any."""
    return joined([_questions(rounds), _prompts(rounds)])


def _questions(rounds: Sequence[Round]) -> Html:
    rows = [
        [task, round_name(row["round"]), *_cells(found)]
        for row in rounds
        for task, found in row["generated"].items()
    ]
    if not rows:
        return Html("")
    head = ["Task", "Sampled in", "Written", "Malformed", "Duplicates", "In the test", "Surplus"]
    caption = (
        "New questions that the model wrote behind lists of real ones. Malformed: cut, or unlike "
        "the real ones in opening, lines, options or length. Duplicates: of each other or of real "
        "training questions. In the test: overlap with a test question. Surplus: more than were "
        "asked for. Sure: the vote’s confidence is high enough for them to give training rows."
    )
    return table([*head, "New", "Mean confidence", "Sure"], rows, caption)


def _cells(found: NewQuestions) -> list[object]:
    written, new = found["written"], found["new"]
    shares = [with_share(n, written) for n in (found[name] for name in _PARTS)]  # type: ignore[literal-required]
    confidence = percent(found["mean_confidence"]) if new else DASH
    return [whole(written), *shares, confidence, with_share(found["confident"], new)]


def _prompts(rounds: Sequence[Round]) -> Html:
    rows = [
        [
            task,
            round_name(row["round"]),
            whole(found["asked"]),
            with_share(found["usable"], found["asked"]),
            whole(found["prompts"]),
        ]
        for row in rounds
        for task, found in row["prompts"].items()
    ]
    if not rows:
        return Html("")
    caption = (
        "Few-shot prompts of greedy zero-shot answers. Usable: reasoning, then an answer sentence "
        "with an answer of the task’s kind. A question’s paths are spread over the prompts."
    )
    return table(["Task", "Sampled in", "Answers", "Usable", "Prompts"], rows, caption)
