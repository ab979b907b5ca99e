"""One path for each distinct way of reasoning (RFT, Yuan et al. 2023, section 3.3)."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from lmsi_jax.errors import LmsiError
from lmsi_jax.selection.rows import KEPT, Facts, Row, Verdict

Form = Literal["equations", "text"]

# Every repetition is bounded, so that the time is linear in the length of the text.
_NUMBER = r"[-+]?[$€£]?\d[\d,]{0,30}(?:\.\d{1,30})?%?"
_OPERAND = rf"[(\s]{{0,4}}{_NUMBER}[)\s]{{0,4}}"
_EQUATION = re.compile(rf"{_OPERAND}(?:[-+*/x×÷]{_OPERAND}){{0,20}}={_OPERAND}")
_SIGNS = str.maketrans({"x": "*", "×": "*", "÷": "/"})
_WORD = re.compile(r"\w+(?:[.,]\d+)*|[-+*/=<>]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistinctReasoning:
    """Keeps the likeliest path of each way of reasoning to a question's answer.

    Attributes:
      form: what tells two ways apart: their list of "equations", in order; where a path has none,
        its text. Or always the "text": its words, without case, spacing and punctuation.
    """

    form: Form = "equations"
    needs = frozenset[str]()

    def __post_init__(self) -> None:
        if self.form not in ("equations", "text"):
            raise LmsiError(f"DistinctReasoning.form = {self.form!r}; use 'equations' or 'text'")

    def judge(self, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
        """See `rows.Filter`."""
        ways = [(row.question.uid, row.key, reasoning(row.solution, self.form)) for row in rows]
        best: dict[object, int] = {}
        order = sorted(range(len(rows)), key=lambda i: (-rows[i].path.logprob, rows[i].name))
        for i in order:
            best.setdefault(ways[i], i)
        chosen = set(best.values())
        again = Verdict(0.0, "reasons as another path does")
        return [KEPT if i in chosen else again for i in range(len(rows))]


def reasoning(solution: str, form: Form) -> tuple[str, ...]:
    """Returns what two solutions share that reason in the same way."""
    found = equations(solution) if form == "equations" else ()
    return found or tuple(word.casefold() for word in _WORD.findall(solution))


def equations(solution: str) -> tuple[str, ...]:
    """Returns a solution's equations in order, without spaces, units and thousands separators.

    "2 x $1,500 = $3,000" becomes "2*1500=3000".
    """
    return tuple(_plain(found) for found in _EQUATION.findall(solution))


def _plain(equation: str) -> str:
    return re.sub(r"[\s,$€£%]", "", equation.translate(_SIGNS))
