"""StrategyQA (Geva et al. 2021, arXiv 2101.02235; yes or no, out of domain).

Q: Yes or no: Did Johann Sebastian Bach ever travel by aeroplane?
A: Bach died in 1750. The first powered flight was in 1903. The answer is no.
"""

from collections.abc import Mapping
from typing import Any

from lmsi_jax.tasks.dataset import Dataset, Item, flat, label_of, sentences

_LABELS = {True: "yes", False: "no", "yes": "yes", "no": "no", "true": "yes", "false": "no"}


def parse(row: Mapping[str, Any]) -> Item:
    """Parses {"question", "answer": true, "facts": [...]}."""
    facts = row.get("facts") or ()
    question = flat(row["question"].removeprefix("Yes or no: "))
    return Item(
        question=f"Q: Yes or no: {question}",
        answer=label_of(_LABELS, row["answer"]),
        reasoning=sentences(*([facts] if isinstance(facts, str) else facts)),
    )


STRATEGYQA = Dataset(
    name="strategyqa",
    kind="yes_no",
    domain="out",
    parse=parse,
    layout='{"question": "...", "answer": true, "facts": ["...", ...]}',
    origin="strategyqa_train.json and _test.json are at github.com/eladsegal/strategyqa",
    file_names={
        "train": ("strategyqa_train.json", "train.jsonl"),
        "test": ("strategyqa_test.json", "test.jsonl", "dev.jsonl"),
    },
    exemplar_file="strategyqa",
    shots=6,
)

TASKS = (STRATEGYQA,)
