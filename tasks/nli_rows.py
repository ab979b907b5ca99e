"""Premise and hypothesis as a question (LMSI, appendix), in the layouts of ANLI, MNLI and RTE."""

import re
from collections.abc import Mapping
from typing import Any

from lmsi_jax.tasks.dataset import Item, flat

UNKNOWN = "it is not possible to tell"
_OPTIONS = f"\nOPTIONS:\n- yes\n- no\n- {UNKNOWN}"
_LABELS = {
    **{"e": "yes", "entailment": "yes", 0: "yes"},
    **{"n": UNKNOWN, "neutral": UNKNOWN, 1: UNKNOWN},
    **{"c": "no", "contradiction": "no", 2: "no"},
}
_TWO_LABELS = {"entailment": "yes", 0: "yes", "not_entailment": "no", 1: "no"}
_UNDECIDED = ("-", -1)
_CONTENT = re.compile(r'^"(.*)"$|hypothesis "(.*)" is true\?$', re.M)
_PREMISES = ("premise", "context", "sentence1")
_HYPOTHESES = ("hypothesis", "sentence2")


def text(premise: str, hypothesis: str, options: bool) -> str:
    """Returns the question; it has no "Q:", and with `options` lists the three answers."""
    return (
        f'Premise:\n"{flat(premise)}"\nBased on this premise, can we conclude the hypothesis '
        f'"{flat(hypothesis)}" is true?{_OPTIONS if options else ""}'
    )


def content(question: str) -> list[str]:
    """Returns premise and hypothesis."""
    return [found[1] or found[2] for found in _CONTENT.finditer(question)]


def three_way(row: Mapping[str, Any]) -> Item | None:
    """Reads a row of ANLI or MNLI; None where its annotators did not agree."""
    label = row["gold_label"] if "gold_label" in row else row["label"]
    if label in _UNDECIDED:
        return None
    return Item(question=text(*_pair(row), options=True), answer=_LABELS[label])


def two_way(row: Mapping[str, Any]) -> Item | None:
    """Reads a row of RTE, GLUE's or SuperGLUE's; None where it has no label."""
    if row["label"] in _UNDECIDED:
        return None
    return Item(question=text(*_pair(row), options=False), answer=_TWO_LABELS[row["label"]])


def _pair(row: Mapping[str, Any]) -> tuple[str, str]:
    premise = next(row[name] for name in _PREMISES if name in row)
    hypothesis = next(row[name] for name in _HYPOTHESES if name in row)
    return premise, hypothesis
