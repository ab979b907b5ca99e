"""Docstrings read like an engineer's: a verb and a noun first, no clause in place of a summary."""

import ast
import pathlib
import re
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("lmsi_jax", "tasks", "launch", "bench")

# Noun clauses and genitives as summaries; "where" for "if"; words that only a translation uses.
PATTERNS = (
    r"^(What|Where|Whether|Whose|Who|Which|Of|How|As)\b",
    r"\bwhere (it|they|there|none|nothing|no|one|some|that|those|asked)\b",
    r"\b(is none|there are some|there is some|and nobody else)\b",
    r"\b(stands?|lies?|mend(ed|s)?|wants|wherein|whereof|likewise)\b",
    r"\b(a person sets|so many|or so|of theirs|of ours)\b",
)
ODD = re.compile("|".join(PATTERNS))
LIMIT = 0.02


def first_lines(root: pathlib.Path = ROOT) -> Iterator[tuple[str, str]]:
    """Yields (file:line, first line) of every docstring of a module, class or function."""
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    text = ast.get_docstring(node)
                    if text:
                        line = getattr(node, "lineno", 1)
                        yield f"{file.relative_to(root)}:{line}", text.splitlines()[0]


def test_fewer_than_two_in_a_hundred_summaries_are_no_summaries():
    lines = list(first_lines())
    odd = [f'{place} "{line}"' for place, line in lines if ODD.search(line)]
    assert len(odd) < LIMIT * len(lines), "\n".join([f"{len(odd)} of {len(lines)}:", *odd])


def test_the_patterns_know_a_clause_from_a_summary():
    assert ODD.search("What the samples depend on.")
    assert ODD.search("Returns the mean, None where there is none.")
    assert ODD.search("A checkpoint that lies beside the run.")
    assert not ODD.search("Returns the accuracy of each task.")
    assert not ODD.search("Computes whether a vote is settled.")
