"""Compares our reading of real outputs with the published one: python -m bench.readings

Reads six models' texts for GSM8K, AQuA and StrategyQA beside their authors' own parse, and GSM8K's
labelled model solutions and chat models' labelled texts, from the folder that `bench.real_outputs`
describes. docs/answers.md has the table of causes.

    python -m bench.readings --data=DIR                          # causes, counts, who is right
    python -m bench.readings --data=DIR --set=GSM8K --cause='at the end'   # and the texts' ends
"""

import argparse
import collections
import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from bench.real_outputs import CHAT, KINDS, add_flag, chat, folder, gold, outputs, rows_of
from lmsi_jax import answers
from lmsi_jax.records import Question

MODELS = ("code001", "code002", "gpt-3.5-turbo", "gpt4", "text002", "text003")
# Labels of chat texts that are wrong themselves, by text and reason.
_NO_SUM = "the publisher's reader takes no value from a sum: 30 + 15 = 45"
_TWICE = "the text answers twice, and the publisher's reader takes the first, which has no value"
WRONG_LABELS: dict[tuple[str, object], str] = {
    ("zeroeval_gsm_Yi-1.5-9B-Chat", "gsm8k-main-test-#884"): _TWICE,
    ("zeroeval_gsm_Yi-1.5-9B-Chat", "gsm8k-main-test-#386"): _TWICE,
    ("zeroeval_gsm_Yi-1.5-9B-Chat", "gsm8k-main-test-#966"): "the answer is a text that ends in 48",
    ("zeroeval_gsm_Yi-1.5-9B-Chat", "gsm8k-main-test-#979"): _NO_SUM,
    ("zeroeval_gsm_command-r", "gsm8k-main-test-#265"): "$9 500 is 9500",
    ("zeroeval_gsm_command-r", "gsm8k-main-test-#560"): _NO_SUM,
    ("zeroeval_gsm_command-r", "gsm8k-main-test-#599"): "the answer is a sum over three lines",
    **{
        ("zeroeval_gsm_gemma-2-2b-it", f"gsm8k-main-test-#{number}"): _NO_SUM
        for number in (873, 223, 1246, 1289, 134, 643, 158, 1091, 345)
    },
    (
        "re2_commonsenseqa_gpt-4o-mini",
        177,
    ): "two options are given, and the label takes the right one",
}
TESTS, SOLUTIONS = "gsm8k/test.jsonl", "gsm8k/example_model_solutions.jsonl"


class Reading(NamedTuple):
    """A text of a model, its authors' parse, and what our parser finds."""

    model: str
    question: Question
    text: str
    theirs: str
    found: answers.Found | None

    @property
    def key(self) -> str | None:
        """The key that our parser reads."""
        return self.found.key if self.found else None

    @property
    def their_key(self) -> str | None:
        """Their parse as our vote would read it."""
        options = answers.options_of(self.question)
        return answers.key(self.theirs, self.question.kind, options)


@functools.cache
def questions(data: pathlib.Path, name: str) -> dict[str, Question]:
    """Returns the questions of a set by id, with gold keys."""
    kind, asked = KINDS[name], {}
    for row in rows_of(data / gold(name)):
        right = answers.key(str(row["answer"]).split("####")[-1].strip(), kind)
        uid = str(row["id"])
        asked[uid] = Question(uid=uid, task=name, text=row["question"], kind=kind, gold=right)
    return asked


@functools.cache
def readings(data: pathlib.Path, name: str, model: str) -> list[Reading]:
    """Returns what is read from a model's texts for a set, in the order of its file."""
    asked, read = questions(data, name), []
    for row in rows_of(data / outputs(name, model)):
        question, text = asked[str(row["id"])], row["completion"]
        found = answers.find(text, question.kind, answers.options_of(question))
        read.append(Reading(model, question, text, str(row["answer"]), found))
    return read


def cause(reading: Reading) -> str | None:
    """Returns the reason why a reading differs from the authors' parse, or None.

    Their parse splits at "answer is", and is `[invalid]` where what follows is no bare answer.
    """
    found, theirs = reading.found, reading.theirs
    if reading.key == reading.their_key:
        return None
    if found is None or found.key is None:
        return "not read by us"
    if not found.marked:
        opens = reading.text.strip(" \n*").startswith(found.answer)
        decides = reading.question.kind == "yes_no"
        return "at the beginning" if opens and decides else "at the end"
    if reading.question.kind == "yes_no":
        plain = found.answer.lower().startswith(("yes", "no"))
        return "qualified after" if plain else "qualified before"
    if reading.question.kind == "number":
        return "words around" if theirs == "[invalid]" else "several numbers"
    return "other mark"


def causes(data: pathlib.Path, names: Sequence[str]) -> dict[tuple[str, str], tuple[int, int, int]]:
    """Returns of each set and cause: how many differ, how often we are right, how often they."""
    apart = collections.defaultdict(list)
    for reading in (r for name in names for model in MODELS for r in readings(data, name, model)):
        if why := cause(reading):
            right = reading.question.gold
            apart[reading.question.task, why].append(
                (reading.key == right, reading.their_key == right)
            )
    return {which: (len(rows), *map(sum, zip(*rows, strict=True))) for which, rows in apart.items()}


@functools.cache
def labels(data: pathlib.Path) -> list[tuple[bool, bool, str]]:
    """Returns of GSM8K's labelled solutions: right by our reading, right by the label, the text."""
    right = [
        answers.key(row["answer"].split("####")[-1], "number") for row in rows_of(data / TESTS)
    ]
    solutions = rows_of(data / SOLUTIONS)
    return [
        (answers.path_key(made["solution"], "number") == key, made["is_correct"], made["solution"])
        for key, row in zip(right, solutions, strict=True)
        for made in row.values()
        if isinstance(made, dict)
    ]


class Labelled(NamedTuple):
    """A chat model's text, what is read from it, and the publisher's label."""

    uid: object
    text: str
    key: str | None
    right: bool
    label: bool


@functools.cache
def labelled(data: pathlib.Path, name: str) -> list[Labelled]:
    """Return the readings of a chat model's texts; `right` is by gold, as `label` is."""
    kind, rows = CHAT[name], []
    for row in rows_of(data / chat(name)):
        options = tuple(row.get("options") or ())
        key = answers.path_key(row["text"], kind, options)
        right = key == answers.key(str(row["gold"]), kind, options)
        rows.append(Labelled(row["id"], row["text"], key, right, bool(row["label"])))
    return rows


def agreement(data: pathlib.Path, name: str) -> tuple[int, int, list[Labelled]]:
    """Return how many labels are met, how many count, and the texts whose label is not met.

    Labels that are wrong themselves (`WRONG_LABELS`) do not count.
    """
    rows = [row for row in labelled(data, name) if (name, row.uid) not in WRONG_LABELS]
    apart = [row for row in rows if row.right != row.label]
    return len(rows) - len(apart), len(rows), apart


def main() -> None:
    """Prints counts, or the texts of one cause."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", choices=list(KINDS))
    parser.add_argument("--cause")
    add_flag(parser)
    options = parser.parse_args()
    texts = [outputs(name, model) for name in KINDS for model in MODELS]
    data = folder(options.data, [*map(gold, KINDS), *map(chat, CHAT), *texts, TESTS, SOLUTIONS])
    names = [options.set] if options.set else list(KINDS)
    for reading in (r for name in names for model in MODELS for r in readings(data, name, model)):
        if options.cause and cause(reading) == options.cause:
            print(f"{reading.model} {reading.question.uid}: ours {reading.key}, theirs", end=" ")
            print(f"{reading.theirs[:60]!r}, gold {reading.question.gold}")
            print(f"    {reading.text.strip()[-300:]}\n")
    for (name, why), (count, ours, theirs) in causes(data, names).items():
        print(f"{name:11}{why:20}{count:5}   right: ours {ours}, theirs {theirs}")
    apart = [text for ours, label, text in labels(data) if ours != label]
    print(f"labelled solutions read otherwise: {len(apart)} of {len(labels(data))}")
    print(*(text[-300:] for text in apart), sep="\n\n")
    for name in CHAT:
        met, count, texts_apart = agreement(data, name)
        print(f"{name:45}{met} of {count} labels met")
        for row in texts_apart:
            print(f"    {row.uid}: read {row.key}, label {row.label}: {row.text[-200:]!r}")


if __name__ == "__main__":
    main()
