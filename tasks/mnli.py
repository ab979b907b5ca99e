"""MNLI, matched and mismatched genres (Williams et al. 2018, arXiv 1704.05426; NLI, out of domain).

Premise:
"The museum sells a map of the old town at its entrance."
Based on this premise, can we conclude the hypothesis "The museum sells a map." is true?
OPTIONS:
- yes
- no
- it is not possible to tell
A: The premise says that the museum sells a map. The answer is yes.
"""

from lmsi_jax.tasks import nli_rows
from lmsi_jax.tasks.dataset import Dataset


def _genres(name: str, genres: str) -> Dataset:
    return Dataset(
        name=name,
        kind="nli",
        domain="out",
        parse=nli_rows.three_way,
        content=nli_rows.content,
        layout='{"sentence1": "...", "sentence2": "...", "gold_label": "entailment"}',
        origin="multinli_1.0.zip is at cims.nyu.edu/~sbowman/multinli, MNLI.zip at "
        "gluebenchmark.com",
        file_names={
            "train": ("multinli_1.0_train.jsonl", "train.tsv"),
            "test": (f"multinli_1.0_dev_{genres}.jsonl", f"dev_{genres}.tsv"),
        },
        tfds={"train": "glue/mnli:train", "test": f"glue/mnli:validation_{genres}"},
        exemplar_file="nli",
        shots=6,
        folder="MNLI",
    )


TASKS = (_genres("mnli_m", "matched"), _genres("mnli_mm", "mismatched"))
