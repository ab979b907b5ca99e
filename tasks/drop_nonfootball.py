"""DROP without football (Dua et al. 2019, arXiv 1903.00161; numbers and spans, in domain).

Passage: The treaty of 1712 gave the northern city a toll, which was given up in 1740.
Q: How many years after the treaty was the toll given up?
A: According to the passage, these years are 1740 - 1712 = 28. The answer is 28.
"""

from lmsi_jax.tasks import drop_rows
from lmsi_jax.tasks.dataset import Dataset

TASK = Dataset(
    name="drop_nonfootball",
    kind="span",
    domain="in",
    parse=drop_rows.nonfootball,
    expand=drop_rows.pairs,
    content=str.splitlines,
    layout=drop_rows.LAYOUT,
    origin=drop_rows.ORIGIN,
    file_names=drop_rows.FILES,
    tfds={"train": "drop:train", "test": "drop:dev"},
    exemplar_file="drop_nonfootball",
    shots=3,
    folder="drop",
)
