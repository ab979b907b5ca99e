"""Questions with lettered options: AQuA, ARC-Challenge and OpenBookQA.

AQuA-RAT (Ling et al. 2017, arXiv 1705.04146), out of domain:

    Q: A cyclist rides at 18 km/hr for 40 minutes. How far does she ride?
    Answer Choices: (a) 10 km (b) 12 km (c) 14 km (d) 15 km (e) 18 km
    A: 40 minutes are 2/3 of an hour. 18 * 2/3 = 12 km. The answer is (b).

ARC-Challenge (Clark et al. 2018, arXiv 1803.05457), in domain:

    Q: Which change is a chemical change?
    (a) ice melting in a glass (b) paper being cut (c) a nail rusting in the rain
    A: Rust is a new substance made of iron and oxygen. The answer is (c).

OpenBookQA (Mihaylov et al. 2018, arXiv 1809.02789), in domain, in the form of ARC-Challenge.
"""

import dataclasses
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from lmsi_jax.tasks.dataset import Dataset, Item, flat, sentences

LAYOUT = (
    '{"question": {"stem": "...", "choices": [{"label": "A", "text": "..."}, ...]}, '
    '"answerKey": "A"}'
)
_ADAPTERS = re.compile(r"to the question:\s*(.*?)\s*\n\n(Answer1:.*?)\s*\n\nAnswer format", re.S)
_NUMBERED = re.compile(r"Answer[0-9]+:\s*")


def options(texts: Sequence[str]) -> str:
    """Formats options as "(a) first (b) second ..."."""
    return " ".join(
        f"({letter}) {flat(text)}"
        for letter, text in zip(string.ascii_lowercase, texts, strict=False)
    )


def item(stem: str, texts: Sequence[str], right: int, lead: str = "") -> Item:
    """Returns a question with options; `right` is the index of the correct one.

    Raises:
      ValueError: there is no such option, an option has no text, or there are too many.
    """
    if not 0 <= right < len(texts) <= len(string.ascii_lowercase):
        raise ValueError(f"there is no option {right + 1} of {len(texts)}")
    if bare := [number for number, text in enumerate(texts, 1) if not text.strip()]:
        raise ValueError(f"option {bare[0]} has no text")
    letter = string.ascii_lowercase[right]
    return Item(question=f"Q: {flat(stem)}\n{lead}{options(texts)}", answer=f"({letter})")


def parse_choices(row: Mapping[str, Any]) -> Item:
    """Parses a row of OpenBookQA or ARC, as in their files, in TFDS or in LLM-Adapters."""
    if "instruction" in row:
        stem, listed = _ADAPTERS.search(row["instruction"]).groups()  # type: ignore[union-attr]
        texts = [text for text in _NUMBERED.split(listed) if text]
        return item(stem, texts, int(row["answer"].removeprefix("answer")) - 1)
    question = row["question"]
    if isinstance(question, str):  # TFDS's ARC
        choices = row["choices"]
        return item(question, choices["text"], choices["label"].index(row["answerKey"]))
    if "choice_A" in question:  # TFDS's OpenBookQA
        texts = [question[f"choice_{letter}"] for letter in "ABCD"]
        return item(question["stem"], texts, int(row["answerKey"]))
    labels = [choice["label"] for choice in question["choices"]]
    texts = [choice["text"] for choice in question["choices"]]
    return item(question["stem"], texts, labels.index(row["answerKey"]))


_AQUA_OPTION = re.compile(r"\s*\(?([A-Z])\)(.*)", re.S)
_LAST_WORDS = re.compile(r"\W*\b(?:the )?(?:correct )?(?:answer|ans|option)\b[^\n]{0,40}$", re.I)


def parse_aqua(row: Mapping[str, Any]) -> Item:
    """Parses {"question", "options": ["A)...", ...], "rationale", "correct": "A"}."""
    matches = [_AQUA_OPTION.fullmatch(option) for option in row["options"]]
    letters = string.ascii_uppercase[: len(matches)]
    if "".join(match[1] if match else "-" for match in matches) != letters:
        raise ValueError(f"its options do not begin with {', '.join(f'{x})' for x in letters)}")
    if len(row["correct"]) != 1 or row["correct"] not in letters:
        raise ValueError(f'"correct" is {row["correct"]!r}, none of its letters {letters}')
    texts = [match[2] for match in matches if match]
    right = letters.index(row["correct"])
    question = item(row["question"], texts, right, lead="Answer Choices: ")
    reasoning = sentences(_LAST_WORDS.sub("", row.get("rationale", "").strip()))
    return dataclasses.replace(question, reasoning=reasoning)


AQUA = Dataset(
    name="aqua",
    kind="choice",
    domain="out",
    parse=parse_aqua,
    layout='{"question": "...", "options": ["A)...", ...], "correct": "A"}',
    origin="train.json and test.json are at github.com/google-deepmind/AQuA",
    file_names={"train": ("train.json",), "test": ("test.json",)},
    exemplar_file="aqua",
    shots=4,
)


ARC_CHALLENGE = Dataset(
    name="arc_challenge",
    kind="choice",
    domain="in",
    parse=parse_choices,
    layout=LAYOUT,
    origin="ARC-V1-Feb2018, ARC-Challenge-Train.jsonl and -Test.jsonl, at allenai.org",
    file_names={
        "train": ("ARC-Challenge-Train.jsonl", "train.jsonl", "train.json"),
        "test": ("ARC-Challenge-Test.jsonl", "test.jsonl", "test.json"),
    },
    tfds={"train": "ai2_arc/ARC-Challenge:train", "test": "ai2_arc/ARC-Challenge:test"},
    exemplar_file="arc_challenge",
    shots=4,
    folder="ARC-Challenge",
)


OPENBOOKQA = Dataset(
    name="openbookqa",
    kind="choice",
    domain="in",
    parse=parse_choices,
    layout=LAYOUT,
    origin="OpenBookQA-V1-Sep2018, Data/Main/train.jsonl and test.jsonl, at allenai.org",
    file_names={"train": ("train.jsonl", "train.json"), "test": ("test.jsonl", "test.json")},
    tfds={"train": "openbookqa:train", "test": "openbookqa:test"},
    exemplar_file="openbookqa",
    shots=4,
)

TASKS = (AQUA, ARC_CHALLENGE, OPENBOOKQA)
