"""The SeqIO stream of examples: order by seed, weights, rates, and missing sources."""

import collections
import itertools

import pytest

from lmsi_jax.errors import LmsiError
from lmsi_jax.prompts import SEPARATOR
from lmsi_jax.records import FORMATS, Example
from lmsi_jax.training.data import Examples


def _examples(source, count):
    return [
        Example(
            uid=f"{source}-{i}",
            task="pens",
            format=FORMATS[i % 4],
            source=source,
            prefix="Q: 3 + 4?\nA: 7.\n\n" if i % 4 < 2 else "",
            inputs=f"Q: {i} pens?\nA:",
            targets=f" {'s' if source == 'strong' else 'w'} {i}.",
            weight=0.25 + i,
        )
        for i in range(count)
    ]


SOURCES = {"weak": _examples("weak", 12), "strong": _examples("strong", 5)}


def _take(count, tokenizer_path, seed=3, rates=None, sources=SOURCES):
    rates = rates or {"weak": 1.0, "strong": 0.0}
    return list(itertools.islice(Examples(sources, rates, tokenizer_path, seed=seed), count))


def test_the_order_is_a_function_of_the_seed(tokenizer_path):
    first, again, other = (_take(30, tokenizer_path, seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_rows_are_the_examples_with_their_weights(tokenizer_path, tokenizer):
    """Each row is an example's texts, tokenised; the separator ends the target."""
    by_inputs = {tuple(tokenizer.encode(e.inputs)): e for e in SOURCES["weak"]}
    seen = set()
    for row in _take(100, tokenizer_path):
        start = next(i for i, w in enumerate(row.weights) if w)
        example = by_inputs[tuple(row.tokens[:start])]
        seen.add(example.uid)
        assert row.prefix == tuple(tokenizer.encode(example.prefix))
        assert list(row.tokens[start:]) == tokenizer.encode(example.targets + SEPARATOR)
        assert set(row.weights[start:]) == {example.weight}
        assert FORMATS[row.group] == example.format
    assert len(seen) == 12


def test_every_example_comes_about_equally_often(tokenizer_path):
    counts = collections.Counter(tuple(row.tokens) for row in _take(600, tokenizer_path))
    assert len(counts) == 12
    assert min(counts.values()) > 30 and max(counts.values()) < 70


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_strong_and_weak_come_at_their_rates(tokenizer_path, tokenizer, rate):
    strong = {tuple(tokenizer.encode(e.inputs + e.targets + SEPARATOR)) for e in SOURCES["strong"]}
    strong |= {
        (*tokenizer.encode(e.inputs), *tokenizer.encode(e.targets + SEPARATOR))
        for e in SOURCES["strong"]
    }
    rows = _take(400, tokenizer_path, rates={"weak": 1 - rate, "strong": rate})
    share = sum(tuple(row.tokens) in strong for row in rows) / len(rows)
    assert share == pytest.approx(rate, abs=0.08)


@pytest.mark.parametrize(
    ("sources", "rates", "message"),
    [
        ({"weak": [], "strong": []}, {"weak": 1.0}, "no weak examples.*lmsi report"),
        ({"weak": SOURCES["weak"]}, {"weak": 0.5, "strong": 0.5}, "no strong.*strong_count"),
    ],
)
def test_a_source_without_examples_names_the_remedy(tokenizer_path, sources, rates, message):
    with pytest.raises(LmsiError, match=message):
        _take(1, tokenizer_path, rates=rates, sources=sources)
