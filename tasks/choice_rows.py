"""Questions with lettered options, in the layouts in which such data sets are passed around."""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from lmsi_jax.tasks.dataset import Item, flat

LAYOUT = (
    '{"question": {"stem": "...", "choices": [{"label": "A", "text": "..."}, ...]}, '
    '"answerKey": "A"}'
)
_ADAPTERS = re.compile(r"to the question:\s*(.*?)\s*\n\n(Answer1:.*?)\s*\n\nAnswer format", re.S)
_NUMBERED = re.compile(r"Answer[0-9]+:\s*")


def options(texts: Sequence[str]) -> str:
    """Returns "(a) first (b) second ..."."""
    return " ".join(
        f"({letter}) {flat(text)}"
        for letter, text in zip(string.ascii_lowercase, texts, strict=False)
    )


def item(stem: str, texts: Sequence[str], right: int, lead: str = "") -> Item:
    """Returns a question with options; `right` is the place of the right one.

    Raises:
      ValueError: there is no such option.
    """
    if not 0 <= right < len(texts):
        raise ValueError(f"no option {right}")
    letter = string.ascii_lowercase[right]
    return Item(question=f"Q: {flat(stem)}\n{lead}{options(texts)}", answer=f"({letter})")


def parse(row: Mapping[str, Any]) -> Item:
    """Reads a row of OpenBookQA or ARC: as published, as in TFDS, or as in LLM-Adapters."""
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
