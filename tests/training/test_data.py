"""The SeqIO stream of examples: order by seed, weights, rates, and missing sources."""

import collections
import dataclasses
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
            targets=f" {'s' if source == 'human' else 'w'} {i}.",
            weight=0.25 + i,
        )
        for i in range(count)
    ]


SOURCES = {"self_generated": _examples("self_generated", 12), "human": _examples("human", 5)}


def _take(count, tokenizer_path, seed=3, rates=None, sources=SOURCES):
    rates = rates or {"self_generated": 1.0, "human": 0.0}
    return list(itertools.islice(Examples(sources, rates, tokenizer_path, seed=seed), count))


def test_the_order_is_a_function_of_the_seed(tokenizer_path):
    first, again, other = (_take(30, tokenizer_path, seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_rows_are_the_examples_with_their_weights(tokenizer_path, tokenizer):
    """Each row is an example's texts, tokenised; the separator ends the target."""
    by_inputs = {tuple(tokenizer.encode(e.inputs)): e for e in SOURCES["self_generated"]}
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
    human = {tuple(tokenizer.encode(e.inputs + e.targets + SEPARATOR)) for e in SOURCES["human"]}
    human |= {
        (*tokenizer.encode(e.inputs), *tokenizer.encode(e.targets + SEPARATOR))
        for e in SOURCES["human"]
    }
    rows = _take(400, tokenizer_path, rates={"self_generated": 1 - rate, "human": rate})
    share = sum(tuple(row.tokens) in human for row in rows) / len(rows)
    assert share == pytest.approx(rate, abs=0.08)


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_a_rate_is_that_of_the_loss_too_whatever_the_sources_weights_are(tokenizer_path, rate):
    """A merged row of the model's own weighs as many samples as it stands for, a given one 1."""
    heavy = [
        dataclasses.replace(row, weight=3.0 + i % 4)
        for i, row in enumerate(SOURCES["self_generated"])
    ]
    light = [dataclasses.replace(row, weight=1.0) for row in SOURCES["human"]]
    own = Examples(
        {"self_generated": heavy, "human": light},
        {"self_generated": 1 - rate, "human": rate},
        tokenizer_path,
        seed=3,
    )
    weights = collections.Counter()
    for row in itertools.islice(own, 600):
        weights[own.groups[row.group].split("/")[0]] += max(row.weights)
    assert weights["human"] / weights.total() == pytest.approx(rate, abs=0.08)
    within = {max(row.weights) for row in itertools.islice(own, 600)}
    assert len(within) == 4 + 1  # what a source's rows weigh among themselves is kept


@pytest.mark.parametrize(
    ("sources", "rates", "message"),
    [
        (
            {"self_generated": [], "human": []},
            {"self_generated": 1.0},
            "no self_generated examples.*lmsi report",
        ),
        (
            {"self_generated": SOURCES["self_generated"]},
            {"self_generated": 0.5, "human": 0.5},
            "no human.*human_examples",
        ),
    ],
)
def test_a_source_without_examples_names_the_remedy(tokenizer_path, sources, rates, message):
    with pytest.raises(LmsiError, match=message):
        _take(1, tokenizer_path, rates=rates, sources=sources)


def test_a_stream_that_skips_goes_on_where_it_would_have_been(tokenizer_path):
    rates = {"self_generated": 0.6, "human": 0.4}
    rows = Examples(SOURCES, rates, tokenizer_path, seed=3)
    rows.skip(17)
    assert list(itertools.islice(rows, 20)) == _take(37, tokenizer_path, rates=rates)[17:]


def test_groups_carry_source_and_format(tokenizer_path, tokenizer):
    rows = Examples(SOURCES, {"self_generated": 0.5, "human": 0.5}, tokenizer_path, seed=3)
    assert rows.groups == [f"{s}/{f}" for s in ("self_generated", "human") for f in FORMATS]
    by_target = {
        tuple(tokenizer.encode(e.targets + SEPARATOR)): e for own in SOURCES.values() for e in own
    }
    for row in itertools.islice(rows, 60):
        start = next(i for i, weight in enumerate(row.weights) if weight)
        example = by_target[tuple(row.tokens[start:])]
        assert rows.groups[row.group] == f"{example.source}/{example.format}"
    alone = Examples(SOURCES, {"self_generated": 1.0, "human": 0.0}, tokenizer_path, seed=3)
    assert alone.groups == list(FORMATS)


def _two_tasks():
    pens = _examples("self_generated", 30)
    cups = [dataclasses.replace(e, task="cups", inputs=f"cups {e.inputs}") for e in pens[:10]]
    return {"self_generated": pens + cups}


@pytest.mark.parametrize(
    ("task_rates", "share"),
    [(None, 0.25), ({"pens": 1.0, "cups": 1.0}, 0.5), ({"cups": 3.0}, 1.0)],
)
def test_tasks_are_drawn_by_their_rates_or_their_sizes(
    tokenizer_path, tokenizer, task_rates, share
):
    rows = Examples(
        _two_tasks(), {"self_generated": 1.0}, tokenizer_path, task_rates=task_rates, seed=3
    )
    start = tokenizer.encode("cups Q:")[:2]
    drawn = [list(row.tokens[:2]) == start for row in itertools.islice(rows, 400)]
    assert sum(drawn) / 400 == pytest.approx(share, abs=0.07)


def test_a_rate_for_a_task_without_examples_names_those_with_some(tokenizer_path):
    with pytest.raises(LmsiError, match="names 'hats'.*no self_generated examples.*cups, pens"):
        Examples(
            _two_tasks(), {"self_generated": 1.0}, tokenizer_path, task_rates={"hats": 1.0}, seed=3
        )


@pytest.mark.parametrize("kind", ["llama", "qwen", "gemma"])
def test_rows_of_a_tokenizer_json_begin_with_the_models_start(tmp_path, kind):
    import hub_models as hub

    from lmsi_jax.models.tokenizers import encode_first, open_tokenizer

    hub.write_tokenizer(tmp_path, kind)
    made = open_tokenizer(tmp_path)
    by_inputs = {e.inputs: e for e in SOURCES["self_generated"]}
    for row in _take(20, str(tmp_path)):
        learnt = next(i for i, weight in enumerate(row.weights) if weight)
        example = by_inputs[made.decode(row.tokens[:learnt])]
        first = encode_first(made, example.prefix) if example.prefix else []
        inputs = made.encode(example.inputs) if first else encode_first(made, example.inputs)
        assert [*row.prefix] == first
        assert row.tokens == inputs + made.encode(example.targets + SEPARATOR)


LLAMA2_LIKE = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}


@pytest.mark.parametrize("ended", [False, True])
def test_rows_of_a_tokenizer_that_adds_a_space_are_read_as_their_text(tmp_path, ended):
    """A text that such a tokenizer encodes apart begins with a space; a row has one before none."""
    from lmsi_jax.models.tokenizers import encode_parts, open_tokenizer

    sentencepiece = pytest.importorskip("sentencepiece")
    texts = [e.prefix + e.inputs + e.targets for e in SOURCES["self_generated"]]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 9),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=330,
        hard_vocab_limit=False,
        byte_fallback=True,
        model_type="bpe",
        minloglevel=2,
        **LLAMA2_LIKE,
    )
    path = str(tmp_path / "tokenizer.model")
    made = open_tokenizer(path)
    assert made.decode([*made.encode("A:"), *made.encode(" w")]) == "A:  w"
    rows = [
        dataclasses.replace(e, targets=(e.targets, "</s>", "") if ended else e.targets)
        for e in SOURCES["self_generated"]
    ]
    stream = Examples({"self_generated": rows}, {"self_generated": 1.0}, path, seed=3)
    found = {row.example: row for row in stream.in_order()}
    assert len(found) == len(rows)
    for number, example in enumerate(rows):
        row = found[number]
        learnt = example.targets if ended else example.targets + SEPARATOR
        parts = (example.prefix, example.inputs, learnt)
        assert [*row.prefix, *row.tokens] == encode_parts(made, parts)
        text = example.prefix + example.inputs + (example.targets[0] if ended else learnt)
        assert made.decode([*row.prefix, *row.tokens]) == text
        assert (row.tokens[-1] == made.eos_id) == ended
