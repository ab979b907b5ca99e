r"""What a reasoning path answers: find the final answer in its text, and give it a canonical key.

Two answers are equal exactly when their keys are the same text, so equality is an equivalence by
construction and a vote can count keys (LMSI, section 3.1). An answer without a key does not vote.

| kind   | read                                                         | key                  |
|--------|--------------------------------------------------------------|----------------------|
| number | 18 · 18.0 · $18 · 18 dollars · 9 * 2 = 18 · \boxed{18} · 18% | 18                   |
| number | 1,800 · 1 800 · 1.8 thousand                                 | 1800                 |
| number | 2 1/2 · 2.5 · 5/2 · 2\frac{1}{2} · 2½                        | 5/2                  |
| number | 1,8 · 1.2.3 · 1/0 · 3 + 4 · 10:30 · 3 cats and 4 dogs · 2x   | none                 |
| choice | (a) · A · (A) foo · option a                                 | a                    |
| yes_no | Yes, it does · true                                          | yes                  |
| nli    | yes · no · it is not possible to tell                        | yes · no · unknown   |
| span   | The  "Chicago Bears" · 1,800 men                             | chicago bears · 1800 men |

Every answer is cut to `MAX_ANSWER` characters before it is looked at closely and every pattern that
runs over a whole text moves forward only, so time is linear in the length of the text.
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
