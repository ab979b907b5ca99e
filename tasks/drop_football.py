"""DROP on football (Dua et al. 2019, arXiv 1903.00161; numbers and spans, in domain).

Passage: The Mariners kicked field goals of 23 and 41 yards. The Foxes did not score.
Q: How many yards was the longest field goal?
A: According to the passage, the field goals were 23 and 41 yards long. The answer is 41 yards.
"""

from lmsi_jax.tasks import drop_rows
from lmsi_jax.tasks.dataset import Dataset

TASK = Dataset(
    name="drop_football",
    kind="span",
    domain="in",
    parse=drop_rows.football,
    expand=drop_rows.pairs,
    content=str.splitlines,
    layout=drop_rows.LAYOUT,
    origin=drop_rows.ORIGIN,
    file_names=drop_rows.FILES,
    tfds={"train": "drop:train", "test": "drop:dev"},
    exemplar_file="drop_football",
    shots=3,
    folder="drop",
)
