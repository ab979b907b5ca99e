"""Questions with a closed set of answers: language inference (ANLI, MNLI, RTE) and StrategyQA.

ANLI, rounds 1 to 3 (Nie et al. 2020, arXiv 1910.14599): three answers; round 1 out of domain.
MNLI, matched and mismatched genres (Williams et al. 2018, arXiv 1704.05426): out of domain.
RTE (Dagan et al. 2005, in SuperGLUE): yes or no, without the list of options, out of domain.

    Premise:
    "The museum sells a map of the old town at its entrance."
    Based on this premise, can we conclude the hypothesis "The museum sells a map." is true?
    OPTIONS:
    - yes
    - no
    - it is not possible to tell
    A: The premise says that the museum sells a map. The answer is yes.

StrategyQA (Geva et al. 2021, arXiv 2101.02235): yes or no, out of domain.

    Q: Yes or no: Did Johann Sebastian Bach ever travel by aeroplane?
    A: Bach died in 1750. The first powered flight was in 1903. The answer is no.

The prompts are LMSI's (appendix).
"""

import re
from collections.abc import Mapping
from typing import Any

from lmsi_jax.tasks.dataset import Dataset, Item, flat, label_of, sentences

UNKNOWN = "it is not possible to tell"
_OPTIONS = f"\nOPTIONS:\n- yes\n- no\n- {UNKNOWN}"
_LABELS = {
    **{"e": "yes", "entailment": "yes", 0: "yes", "0": "yes"},
    **{"n": UNKNOWN, "neutral": UNKNOWN, 1: UNKNOWN, "1": UNKNOWN},
    **{"c": "no", "contradiction": "no", 2: "no", "2": "no"},
}
_TWO_LABELS = {"entailment": "yes", 0: "yes", "not_entailment": "no", 1: "no"}
_UNDECIDED = ("-", -1)
_CONTENT = re.compile(r'^"(.*)"$|hypothesis "(.*)" is true\?$', re.M)
_PREMISES = ("premise", "context", "sentence1")
_HYPOTHESES = ("hypothesis", "sentence2")


def text(premise: str, hypothesis: str, options: bool) -> str:
    """Returns the question, without "Q:"; with `options` it lists the three answers."""
    return (
        f'Premise:\n"{flat(premise)}"\nBased on this premise, can we conclude the hypothesis '
        f'"{flat(hypothesis)}" is true?{_OPTIONS if options else ""}'
    )


def content(question: str) -> list[str]:
    """Returns premise and hypothesis of a question."""
    return [match[1] or match[2] for match in _CONTENT.finditer(question)]


def three_way(row: Mapping[str, Any]) -> Item | None:
    """Parses a row of ANLI or MNLI; None if its annotators disagree."""
    label = row["gold_label"] if "gold_label" in row else row["label"]
    if label in _UNDECIDED:
        return None
    return Item(question=text(*_pair(row), options=True), answer=label_of(_LABELS, label))


def two_way(row: Mapping[str, Any]) -> Item | None:
    """Parses a row of RTE from GLUE or SuperGLUE; None if it has no label."""
    if row["label"] in _UNDECIDED:
        return None
    return Item(
        question=text(*_pair(row), options=False), answer=label_of(_TWO_LABELS, row["label"])
    )


def _pair(row: Mapping[str, Any]) -> tuple[str, str]:
    premise = next(row[name] for name in _PREMISES if name in row)
    hypothesis = next(row[name] for name in _HYPOTHESES if name in row)
    return premise, hypothesis


def _round(number: int) -> Dataset:
    return Dataset(
        name=f"anli_r{number}",
        kind="nli",
        domain="out" if number == 1 else "in",
        parse=three_way,
        content=content,
        layout='{"context": "...", "hypothesis": "...", "label": "e"}',
        origin=f"anli_v1.0.zip, R{number}/train.jsonl and test.jsonl, is at "
        "github.com/facebookresearch/anli",
        file_names={"train": ("train.jsonl",), "test": ("test.jsonl",)},
        tfds={split: f"anli/r{number}:{split}" for split in ("train", "test")},
        exemplar_file="nli",
        shots=6,
        folder=f"R{number}",
    )


ANLI = tuple(_round(number) for number in (1, 2, 3))


def _genres(name: str, genres: str) -> Dataset:
    return Dataset(
        name=name,
        kind="nli",
        domain="out",
        parse=three_way,
        content=content,
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


MNLI = (_genres("mnli_m", "matched"), _genres("mnli_mm", "mismatched"))


RTE = Dataset(
    name="rte",
    kind="yes_no",
    domain="out",
    parse=two_way,
    content=content,
    layout='{"premise": "...", "hypothesis": "...", "label": "entailment"}',
    origin="RTE.zip, train.jsonl and val.jsonl, is at super.gluebenchmark.com",
    file_names={"train": ("train.jsonl", "train.tsv"), "test": ("val.jsonl", "dev.tsv")},
    tfds={"train": "super_glue/rte:train", "test": "super_glue/rte:validation"},
    exemplar_file="rte",
    shots=4,
    folder="RTE",
)

_YES_NO = {True: "yes", False: "no", "yes": "yes", "no": "no", "true": "yes", "false": "no"}


def parse_strategyqa(row: Mapping[str, Any]) -> Item:
    """Parses StrategyQA's {"question", "answer": true, "facts": [...]}."""
    facts = row.get("facts") or ()
    question = flat(row["question"].removeprefix("Yes or no: "))
    return Item(
        question=f"Q: Yes or no: {question}",
        answer=label_of(_YES_NO, row["answer"]),
        reasoning=sentences(*([facts] if isinstance(facts, str) else facts)),
    )


STRATEGYQA = Dataset(
    name="strategyqa",
    kind="yes_no",
    domain="out",
    parse=parse_strategyqa,
    layout='{"question": "...", "answer": true, "facts": ["...", ...]}',
    origin="strategyqa_train.json and _test.json are at github.com/eladsegal/strategyqa",
    file_names={
        "train": ("strategyqa_train.json", "train.jsonl"),
        "test": ("strategyqa_test.json", "test.jsonl", "dev.jsonl"),
    },
    exemplar_file="strategyqa",
    shots=6,
)

TASKS = (*ANLI, RTE, *MNLI, STRATEGYQA)
