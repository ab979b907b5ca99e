"""OpenBookQA (Mihaylov et al. 2018, arXiv 1809.02789; choice, in domain).

Q: A puddle on the pavement is gone after a sunny afternoon because the water
(a) froze solid (b) turned into a gas (c) became heavier (d) was painted over
A: Warm water evaporates into a gas. The answer is (b).
"""

from lmsi_jax.tasks import choice_rows
from lmsi_jax.tasks.dataset import Dataset

TASK = Dataset(
    name="openbookqa",
    kind="choice",
    domain="in",
    parse=choice_rows.parse,
    layout=choice_rows.LAYOUT,
    origin="OpenBookQA-V1-Sep2018, Data/Main/train.jsonl and test.jsonl, at allenai.org",
    file_names={"train": ("train.jsonl", "train.json"), "test": ("test.jsonl", "test.json")},
    tfds={"train": "openbookqa:train", "test": "openbookqa:test"},
    exemplar_file="openbookqa",
    shots=4,
)
