"""ANLI, round 2 (Nie et al. 2020, arXiv 1910.14599; NLI, in domain).

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

TASK = Dataset(
    name="anli_r2",
    kind="nli",
    domain="in",
    parse=nli_rows.three_way,
    content=nli_rows.content,
    layout='{"context": "...", "hypothesis": "...", "label": "e"}',
    origin="anli_v1.0.zip, R2/train.jsonl and test.jsonl, is at github.com/facebookresearch/anli",
    file_names={"train": ("train.jsonl",), "test": ("test.jsonl",)},
    tfds={"train": "anli/r2:train", "test": "anli/r2:test"},
    exemplar_file="nli",
    shots=6,
    folder="R2",
)
