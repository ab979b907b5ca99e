"""ARC-Challenge (Clark et al. 2018, arXiv 1803.05457; choice, in domain).

Q: Which change is a chemical change?
(a) ice melting in a glass (b) paper being cut (c) a nail rusting in the rain
A: Rust is a new substance made of iron and oxygen. The answer is (c).
"""

from lmsi_jax.tasks import choice_rows
from lmsi_jax.tasks.dataset import Dataset

TASK = Dataset(
    name="arc_challenge",
    kind="choice",
    domain="in",
    parse=choice_rows.parse,
    layout=choice_rows.LAYOUT,
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
