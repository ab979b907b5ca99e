"""Answers: the final answer of a text, and one canonical key for all ways to write it.

Two answers are equal exactly when their keys are the same text, so equality is an equivalence by
construction and a vote can count keys (LMSI, section 3.1). An answer without a key does not vote.

    reader        the rule that chooses among a text's candidates
    marks         what marks a candidate; where a solution and a sentence end
    conclusions   the answer of a solution that marks none
    canonical     one key for each kind of answer; yes or no, inference, lists
    numbers       numbers in figures and in words
    options       options of a multiple-choice question, and their letters
    spans         words and dates
    typeset       LaTeX, markdown and typographic characters

The rules, each with an example, are the tables of docs/answers.md, which a test executes. Work is
linear in the length of the text: patterns that run over a whole text repeat a bounded number of
times, and an answer is cut to `MAX_ANSWER` characters before it is looked at closely.
"""

from lmsi_jax.answers.canonical import MAX_ANSWER, key
from lmsi_jax.answers.numbers import MAX_DIGITS
from lmsi_jax.answers.options import (
    options_in,
    options_of,
    rotate,
    rotations,
    unrotated_letter,
)
from lmsi_jax.answers.reader import (
    Candidate,
    Found,
    Reading,
    explain,
    extract,
    find,
    path_key,
    read,
    surface,
)

__all__ = [
    "MAX_ANSWER",
    "MAX_DIGITS",
    "Candidate",
    "Found",
    "Reading",
    "explain",
    "extract",
    "find",
    "key",
    "options_in",
    "options_of",
    "path_key",
    "read",
    "rotate",
    "rotations",
    "surface",
    "unrotated_letter",
]
