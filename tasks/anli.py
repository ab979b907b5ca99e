"""ANLI, rounds 1 to 3 (Nie et al. 2020, arXiv 1910.14599; NLI, round 1 out of domain, others in).

Premise:
"A man in a red cap is carrying two crates of apples across the market square."
Based on this premise, can we conclude the hypothesis "The man grew the apples himself." is true?
OPTIONS:
- yes
- no
- it is not possible to tell
A: The premise does not say where the apples come from. The answer is it is not possible to tell.
"""

from lmsi_jax.tasks import nli_rows
from lmsi_jax.tasks.dataset import Dataset


def _round(number: int) -> Dataset:
    return Dataset(
        name=f"anli_r{number}",
        kind="nli",
        domain="out" if number == 1 else "in",
        parse=nli_rows.three_way,
        content=nli_rows.content,
        layout='{"context": "...", "hypothesis": "...", "label": "e"}',
        origin=f"anli_v1.0.zip, R{number}/train.jsonl and test.jsonl, is at "
        "github.com/facebookresearch/anli",
        file_names={"train": ("train.jsonl",), "test": ("test.jsonl",)},
        tfds={split: f"anli/r{number}:{split}" for split in ("train", "test")},
        exemplar_file="nli",
        shots=6,
        folder=f"R{number}",
    )


TASKS = tuple(_round(number) for number in (1, 2, 3))
