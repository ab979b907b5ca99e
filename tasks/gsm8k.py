"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168; number, in domain).

Q: Mia bakes 24 rolls. She eats 3 and packs the rest in bags of 7. How many bags does she fill?
A: Mia has 24 - 3 = 21 rolls left. 21 / 7 = 3. The answer is 3.
"""

import re
from collections.abc import Mapping
from typing import Any

from lmsi_jax.tasks.dataset import Dataset, Item, flat, sentences


def parse(row: Mapping[str, Any]) -> Item:
    """Reads {"question", "answer"}, where the answer's last line is "#### " and the number."""
    solution, gold = row["answer"].rsplit("####", 1)
    return Item(
        question=f"Q: {flat(row['question'])}",
        answer=gold.strip().replace(",", ""),
        reasoning=one_line(solution),
    )


def one_line(solution: str) -> str:
    """Drops the calculator's annotations (<<48/2=24>>) and joins the lines into sentences."""
    return sentences(re.sub(r"<<.*?>>", "", solution))


TASK = Dataset(
    name="gsm8k",
    kind="number",
    domain="in",
    parse=parse,
    layout='{"question": "...", "answer": "... #### 12"}',
    origin="train.jsonl and test.jsonl are at github.com/openai/grade-school-math",
    file_names={"train": ("train.jsonl",), "test": ("test.jsonl",)},
    tfds={"train": "gsm8k:train", "test": "gsm8k:test"},
    exemplar_file="gsm8k",
    shots=8,
)
