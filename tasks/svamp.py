"""SVAMP (Patel et al. 2021, arXiv 2103.07191; number, out of domain, test questions alone).

Q: Paco had 26 salty cookies and ate 9 of them. How many salty cookies did he have left?
A: 26 - 9 = 17. The answer is 17.
"""

from collections.abc import Mapping
from typing import Any

from lmsi_jax.tasks.dataset import Dataset, Item, sentences


def parse(row: Mapping[str, Any]) -> Item:
    """Reads {"Body", "Question", "Answer": 17.0}."""
    return Item(
        question=f"Q: {sentences(row['Body'].strip(), row['Question'].strip())}",
        answer=f"{float(row['Answer']):.10g}",
    )


TASK = Dataset(
    name="svamp",
    kind="number",
    domain="out",
    parse=parse,
    layout='{"Body": "...", "Question": "...", "Answer": 17.0}',
    origin="SVAMP.json is at github.com/arkilpatel/SVAMP",
    file_names={"test": ("SVAMP.json", "test.json")},
    exemplar_file="gsm8k",
    shots=8,
)
