"""RTE (Dagan et al. 2005, in SuperGLUE; yes or no, out of domain).

Premise:
"The ferry Astrid was sold to a museum last autumn."
Based on this premise, can we conclude the hypothesis "The ferry Astrid was sold." is true?
A: The premise says that the ferry was sold to a museum. The answer is yes.
"""

from lmsi_jax.tasks import nli_rows
from lmsi_jax.tasks.dataset import Dataset

TASK = Dataset(
    name="rte",
    kind="yes_no",
    domain="out",
    parse=nli_rows.two_way,
    content=nli_rows.content,
    layout='{"premise": "...", "hypothesis": "...", "label": "entailment"}',
    origin="RTE.zip, train.jsonl and val.jsonl, is at super.gluebenchmark.com",
    file_names={"train": ("train.jsonl", "train.tsv"), "test": ("val.jsonl", "dev.tsv")},
    tfds={"train": "super_glue/rte:train", "test": "super_glue/rte:validation"},
    exemplar_file="rte",
    shots=4,
    folder="RTE",
)
