"""What a reasoning path answers: find the final answer in its text, and give it a canonical key.

Two answers are equal exactly when their keys are the same text, so equality is an equivalence by
construction and a vote can count keys (LMSI, section 3.1). An answer without a key does not vote.

    extraction     marked answers: "The answer is 18."
    conclusions    unmarked ones
    keys           one key for each kind of answer; numbers, words, dates, plain, sentences help
    options        those of a question: (a), (b), ...

The rules, each with an example, are the tables of docs/answers.md, which a test executes. Work is
linear in the length of the text: patterns that run over a whole text repeat a bounded number of
times, and an answer is cut to `MAX_ANSWER` characters before it is looked at closely.
"""

from lmsi_jax.answers.extraction import Found, extract, find, path_key
from lmsi_jax.answers.keys import MAX_ANSWER, key
from lmsi_jax.answers.numbers import MAX_DIGITS
from lmsi_jax.answers.options import options_in, options_of

__all__ = [
    "MAX_ANSWER",
    "MAX_DIGITS",
    "Found",
    "extract",
    "find",
    "key",
    "options_in",
    "options_of",
    "path_key",
]
