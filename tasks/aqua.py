"""AQuA-RAT (Ling et al. 2017, arXiv 1705.04146; choice, out of domain).

Q: A cyclist rides at 18 km/hr for 40 minutes. How far does she ride?
Answer Choices: (a) 10 km (b) 12 km (c) 14 km (d) 15 km (e) 18 km
A: 40 minutes are 2/3 of an hour. 18 * 2/3 = 12 km. The answer is (b).
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from lmsi_jax.tasks import choice_rows
from lmsi_jax.tasks.dataset import Dataset, Item, sentences

_LAST_WORDS = re.compile(r"\W*\b(?:the )?(?:correct )?(?:answer|ans|option)\b[^\n]{0,40}$", re.I)


def parse(row: Mapping[str, Any]) -> Item:
    """Reads {"question", "options": ["A)...", ...], "rationale", "correct": "A"}."""
    texts = [option.partition(")")[2] for option in row["options"]]
    right = "ABCDE".index(row["correct"])
    item = choice_rows.item(row["question"], texts, right, lead="Answer Choices: ")
    reasoning = sentences(_LAST_WORDS.sub("", row.get("rationale", "").strip()))
    return dataclasses.replace(item, reasoning=reasoning)


TASK = Dataset(
    name="aqua",
    kind="choice",
    domain="out",
    parse=parse,
    layout='{"question": "...", "options": ["A)...", ...], "correct": "A"}',
    origin="train.json and test.json are at github.com/google-deepmind/AQuA",
    file_names={"train": ("train.json",), "test": ("test.json",)},
    exemplar_file="aqua",
    shots=4,
)
