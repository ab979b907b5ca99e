"""The sample browser: static files with all samples of a run, which open without a server.

    browse/index.html         the page; it loads the files beside it and nothing else
           browse.js          filters, search, pages and permalinks
           questions.js       one row for each question, prompt style and model
           samples-00000.js   the samples of some questions, loaded once one of them is opened

Data are calls of functions in scripts, since a page that was opened from a disk may not fetch. What
models wrote is hostile: it is JSON whose "<", ">" and "&" are escaped, and the page puts it on the
screen as text alone.
"""

import collections
import dataclasses
import importlib.resources
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lmsi_jax.records import Sample, Vote
from lmsi_jax.report.comparison import SHORT_PROMPT_STYLE_NAMES
from lmsi_jax.report.html import Html, element
from lmsi_jax.report.page import render_document

PAGE = "index.html"
_SHARD_CHARACTERS = 400_000
"""Characters of texts in a file of samples, about; a question is never divided."""
# Chromium does not count the files beside a page that was opened from a disk as 'self'.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'self' file:"


@dataclasses.dataclass(frozen=True)
class Answered:
    """One model's samples of a question.

    Attributes:
      round: the model's, 0 for the base; of training questions the round that sampled them.
      vote: the vote on them.
      samples: all of them.
      right: for each sample in index order, if its answer is right; None without a label.
      vote_right: if the vote is right; None without a label or a vote.
    """

    round: int
    vote: Vote
    samples: Sequence[Sample]
    right: Sequence[bool] | None
    vote_right: bool | None


@dataclasses.dataclass(frozen=True)
class Browsed:
    """A question in one prompt style with the answers of several models.

    Attributes:
      split: "test" or "train".
      uid, task, text, gold: of the question.
      prompt_style: "" of training questions.
      answers: by round.
    """

    split: str
    uid: str
    task: str
    text: str
    gold: str | None
    prompt_style: str
    answers: Sequence[Answered]


def write_browser(
    name: str, items: Iterable[Browsed], write: Callable[[str, bytes], None]
) -> tuple[int, int]:
    """Writes the browser's files; the page comes last.

    Args:
      name: the run's.
      items: all questions; they are read once, and one file's samples are held at a time.
      write: writes a file by its name.

    Returns:
      The number of samples and of files with samples.
    """
    questions: dict[tuple[str, str], int] = {}
    question_rows: list[list[Any]] = []
    rows: list[list[Any]] = []
    shard: list[list[Any]] = []
    shards = characters = samples = 0

    def write_shard() -> None:
        nonlocal shard, shards, characters
        write(f"samples-{shards:05d}.js", _call("shard", shards, shard))
        shard, shards, characters = [], shards + 1, 0

    for item in items:
        key = (item.split, item.uid)
        if key not in questions:
            questions[key] = len(question_rows)
            question_rows.append([item.uid, item.task, item.text, item.gold])
        texts: list[list[Any]] = [[answer.round, _texts(answer)] for answer in item.answers]
        rows.append(
            [questions[key], item.split, item.prompt_style, shards, len(shard)]
            + [[_answer_row(answer) for answer in item.answers]]
        )
        shard.append(texts)
        samples += sum(len(answer.samples) for answer in item.answers)
        characters += sum(len(text[0]) for _, some in texts for text in some)
        if characters >= _SHARD_CHARACTERS:
            write_shard()
    if shard:
        write_shard()
    index = {
        "run": name,
        "samples": samples,
        "styles": dict(SHORT_PROMPT_STYLE_NAMES),
        "questions": question_rows,
        "items": rows,
    }
    write("questions.js", _call("start", index))
    script = importlib.resources.files("lmsi_jax.report").joinpath("browse.js")
    write("browse.js", script.read_bytes())
    write(PAGE, _page(name).encode())
    return samples, shards


def _answer_row(answer: Answered) -> list[Any]:
    vote = answer.vote
    right = None if answer.vote_right is None else int(answer.vote_right)
    return [answer.round, vote.winner, right, round(vote.confidence, 4)] + [
        vote.parsed,
        vote.total,
        int(bool(vote.tied)),
    ]


def _texts(answer: Answered) -> list[list[Any]]:
    """Returns the different texts: [text, key, right, kept, finished, count, log-probability]."""
    ordered = sorted(answer.samples, key=lambda sample: sample.sample_index)
    kept = {*answer.vote.kept}
    counts = collections.Counter(sample.text for sample in ordered)
    rows: dict[str, list[Any]] = {}
    for i, sample in enumerate(ordered):
        if sample.text not in rows:
            right = None if answer.right is None else int(answer.right[i])
            rows[sample.text] = [
                sample.text,
                answer.vote.keys[i],
                right,
                int(sample.sample_index in kept),
                int(sample.finished),
                counts[sample.text],
                round(sample.logprob, 2),
            ]
    return [*rows.values()]


def _call(function: str, *arguments: Any) -> bytes:
    """Returns a script that calls a function of the page with JSON, which cannot end the script."""
    text = ",".join(json.dumps(value, separators=(",", ":")) for value in arguments)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f"lmsi.{function}({text});\n".encode()


def _page(name: str) -> str:
    def choice(label: str, key: str, *options: tuple[str, str]) -> Html:
        listed = [element("option", words, value=value) for value, words in options]
        return element("label", label, element("select", *listed, name=key))

    outcomes = (
        ("", "any"),
        ("right", "right"),
        ("wrong", "wrong"),
        ("flipped", "flipped either way"),
        ("gained", "wrong → right"),
        ("lost", "right → wrong"),
        ("none", "no vote"),
        ("unlabelled", "no label"),
    )
    orders = (("", "as asked"), ("low", "least confident first"), ("high", "most confident first"))
    controls = element(
        "form",
        choice("Questions", "split", ("test", "test"), ("train", "training")),
        choice("Task", "task", ("", "all")),
        choice("Prompt style", "style", ("", "all")),
        choice("Left", "left"),
        choice("Right", "right"),
        choice("Vote of the right model", "outcome", *outcomes),
        element(
            "fieldset",
            element("legend", "Its confidence in %"),
            element("input", type="number", name="low", min=0, max=100, aria_label="from"),
            " to ",
            element("input", type="number", name="high", min=0, max=100, aria_label="to"),
        ),
        choice(
            "Samples", "some", ("", "any"), ("unparsed", "some unparsed"), ("tied", "tied vote")
        ),
        choice("Order", "sort", *orders),
        element(
            "label",
            "Search",
            element("input", type="search", name="text", placeholder="question, answer or uid"),
            cls="search",
        ),
        element(
            "label", element("input", type="checkbox", name="deep"), " in samples too", cls="check"
        ),
        element("button", "Reset", type="reset"),
        id="controls",
        role="search",
    )
    keys = (
        "Keys: / search, j and k next and previous question, Enter open, n and p next and "
        "previous page. The link of a question, and that of a search in the address bar, can be "
        "sent along with the folder."
    )
    body = element(
        "body",
        element(
            "header",
            element("p", f"All samples of {name}", cls="kicker"),
            element("h1", "Questions, samples and votes"),
            element("p", element("a", "Report", href="../report.html"), cls="basis"),
        ),
        element("noscript", element("p", "This page needs JavaScript; the report does not.")),
        controls,
        element("p", "Loading …", id="status", role="status", aria_live="polite"),
        element("main", id="list"),
        element("nav", id="pages", aria_label="Pages"),
        element("p", keys, cls="note"),
        *(element("script", src=file) for file in ("browse.js", "questions.js")),
        cls="browser",
    )
    return render_document(f"{name}: all samples", body, _POLICY)
