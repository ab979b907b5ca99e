"""Rows for filters, and NumPy's view of "the lowest share"."""

import math
from fractions import Fraction

from hypothesis import strategies as st

from lmsi_jax.records import Question, Sample, Vote
from lmsi_jax.selection.rows import Row

LOSSES = st.floats(min_value=0.01, max_value=20, allow_nan=False)
SHARES = st.integers(1, 100).map(lambda percent: percent / 100)


def row(uid="q", index=0, *, confidence=0.5, entropy=0.5, total=8, logprob=-1.0, **kinds):
    """A row with the given scores; `text` and `key` are its own."""
    text = kinds.pop("text", f"{uid} {index}. The answer is 7.")
    key = kinds.pop("key", "7")
    return Row(
        question=Question(uid=uid, task="t", text=f"Q: {uid}?", kind="number"),
        vote=Vote(
            uid=uid,
            task="t",
            winner="7",
            keys=("7",) * total,
            kept=tuple(range(total)),
            confidence=confidence,
            parsed=total,
            total=total,
            tied=(),
            entropy=entropy,
        ),
        sample=Sample(
            uid=uid, sample_index=index, text=text, tokens=4, logprob=logprob, end="end_token"
        ),
        solution=text.strip(),
        answer=key,
        key=key,
        scores=kinds,
    )


def kept(found):
    """Places of the rows that a filter keeps."""
    return [i for i, verdict in enumerate(found) if verdict.weight > 0]


def lowest(values, percent):
    """Brute force: rows are added one by one, by (value, place), until the share is reached."""
    chosen = []
    for _, place in sorted((value, place) for place, value in enumerate(values)):
        if len(chosen) >= Fraction(percent, 100) * len(values):
            break
        chosen.append(place)
    return sorted(chosen)


def exact_count(n, percent):
    """How many of n rows are kept."""
    return min(n, math.ceil(Fraction(percent, 100) * n))
