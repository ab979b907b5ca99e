"""Grade-school word problems with a number as the answer: GSM8K and SVAMP.

GSM8K (Cobbe et al. 2021, arXiv 2110.14168), in domain:

    Q: Mia bakes 24 rolls. She eats 3 and packs the rest in bags of 7. How many bags does she fill?
    A: Mia has 24 - 3 = 21 rolls left. 21 / 7 = 3. The answer is 3.

SVAMP (Patel et al. 2021, arXiv 2103.07191), out of domain, test questions alone:

    Q: Paco had 26 salty cookies and ate 9 of them. How many salty cookies did he have left?
    A: 26 - 9 = 17. The answer is 17.
"""

import re
from collections.abc import Mapping
from typing import Any

from lmsi_jax.tasks.dataset import Dataset, Item, flat, sentences

# "1,000" and not "3,5", which may mean 3.5.
_THOUSANDS = re.compile(r"[^\d,]{0,3}\d{1,3}(?:,\d{3})+(?:\.\d+)?\D{0,3}")


def parse_gsm8k(row: Mapping[str, Any]) -> Item:
    """Parses {"question", "answer"}; the last line of the answer is "#### " and the number."""
    solution, mark, gold = row["answer"].rpartition("####")
    if not mark:
        raise ValueError('its answer has no "####"')
    gold = gold.strip()
    return Item(
        question=f"Q: {flat(row['question'])}",
        answer=gold.replace(",", "") if _THOUSANDS.fullmatch(gold) else gold,
        reasoning=one_line(solution),
    )


def one_line(solution: str) -> str:
    """Drops calculator annotations (<<48/2=24>>) and joins the lines into sentences."""
    return sentences(re.sub(r"<<.*?>>", "", solution))


GSM8K = Dataset(
    name="gsm8k",
    kind="number",
    domain="in",
    parse=parse_gsm8k,
    layout='{"question": "...", "answer": "... #### 12"}',
    origin="train.jsonl and test.jsonl are at github.com/openai/grade-school-math",
    file_names={"train": ("train.jsonl",), "test": ("test.jsonl",)},
    tfds={"train": "gsm8k:train", "test": "gsm8k:test"},
    exemplar_file="gsm8k",
    shots=8,
)


def parse_svamp(row: Mapping[str, Any]) -> Item:
    """Parses {"Body", "Question", "Answer": 17.0}."""
    gold = float(row["Answer"])
    return Item(
        question=f"Q: {sentences(row['Body'].strip(), row['Question'].strip())}",
        answer=str(int(gold)) if gold.is_integer() else f"{gold:.15g}",
    )


SVAMP = Dataset(
    name="svamp",
    kind="number",
    domain="out",
    parse=parse_svamp,
    layout='{"Body": "...", "Question": "...", "Answer": 17.0}',
    origin="SVAMP.json is at github.com/arkilpatel/SVAMP",
    file_names={"test": ("SVAMP.json", "test.json")},
    exemplar_file="gsm8k",
    shots=8,
)

TASKS = (GSM8K, SVAMP)
