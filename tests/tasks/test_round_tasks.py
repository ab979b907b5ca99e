"""A round's examples for T5X: each example's weight reaches its target tokens, packed or not."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

from lmsi_jax.errors import LmsiError
from lmsi_jax.prompts import build_prompt
from lmsi_jax.records import Example, Question
from lmsi_jax.runtime.files import write_record
from lmsi_jax.runtime.store import ShardStore
from lmsi_jax.tasks import registry, seqio_prompts, seqio_rounds

WEIGHTS = (0.25, 3.0, 0.0, 1.7)


def _examples(source):
    return [
        Example(
            uid=f"{source}{i}",
            task="purchases",
            format="zero_shot_cot",
            source=source,
            prefix="Q: A?\n\n" * (i % 2),
            inputs=f"Q: Ann has {i} pens.\nA:",
            targets=" The answer is 7.",
            weight=weight,
        )
        for i, weight in enumerate(WEIGHTS)
    ]


@pytest.fixture
def run(tmp_path):
    store = ShardStore(tmp_path / "round_1" / "mix")
    store.write("self_generated-purchases", [row.to_json() for row in _examples("self_generated")])
    return tmp_path


def _batches(name, pack, lengths=None):
    return list(
        seqio.get_dataset(
            name,
            lengths or {"inputs": 64, "targets": 64},
            dataset_split="train",
            feature_converter=seqio_rounds.WeightedConverter(pack=pack),
            shuffle=False,
            num_epochs=1,
        ).as_numpy_iterator()
    )


@pytest.mark.parametrize("pack", [False, True])
def test_each_target_token_has_its_examples_weight_and_all_others_none(
    run, tokenizer, tokenizer_path, pack
):
    found = _batches(seqio_rounds.mixture(run, tokenizer=tokenizer_path), pack)
    tokens, weights = [], []
    for batch in found:
        used = batch["decoder_target_tokens"] != 0
        tokens += batch["decoder_target_tokens"][used].tolist()
        weights += batch["decoder_loss_weights"][used].tolist()
        assert not batch["decoder_loss_weights"][~used].any()
    wanted_tokens, wanted_weights = [], []
    for row in _examples("self_generated"):
        inputs = tokenizer.encode(row.prefix) + tokenizer.encode(row.inputs)
        targets = tokenizer.encode(row.targets + "\n\n")
        wanted_tokens += inputs + targets
        wanted_weights += [0.0] * len(inputs) + [row.weight] * len(targets)
    assert tokens == wanted_tokens
    np.testing.assert_array_equal(np.float32(weights), np.float32(wanted_weights))
    assert (len(found) < len(WEIGHTS)) == pack


def test_the_first_token_of_an_example_weighs_nothing():
    row = {"inputs": tf.zeros(0, tf.int32), "targets": tf.constant([5, 6, 7]), "weight": 2.0}
    dataset = tf.data.Dataset.from_tensors(row)
    converter = seqio_rounds.WeightedConverter(pack=False)
    (found,) = converter(dataset, {"inputs": 1, "targets": 4}).as_numpy_iterator()
    assert found["decoder_loss_weights"].tolist() == [0.0, 2.0, 2.0, 0.0, 0.0]


def test_a_source_without_examples_is_named(run, tokenizer_path):
    with pytest.raises(LmsiError, match="holds no human examples"):
        seqio_rounds.mixture(run, tokenizer=tokenizer_path, human_rate=0.5)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(LmsiError, match="holds no run; set RUN_DIR"):
        seqio_rounds.model_config(tmp_path)
    with pytest.raises(LmsiError, match="holds no questions"):
        seqio_rounds.questions(tmp_path)


@pytest.fixture
def asked(tmp_path):
    """A folder with a run's questions; and the longest prompt in tokens."""
    rows = [
        Question(uid=f"{task}{i}", task=task, text="Has Ann more? " * i, kind=kind, gold="yes")
        for task, kind in (("purchases", "number"), ("compare", "yes_no"))
        for i in (1, 3, 2)
    ]
    store = ShardStore(tmp_path / "questions")
    for task in ("purchases", "compare"):
        store.write(f"test-{task}", [row.to_json() for row in rows if row.task == task])
    exemplars = {task: registry.get(task).exemplars() for task in ("purchases", "compare")}
    for task, own in exemplars.items():
        store.write(f"exemplars-{task}", [one.to_json() for one in own])
    return tmp_path, [build_prompt(row, exemplars[row.task], "cot") for row in rows]


def test_lengths_are_those_of_the_longest_prompt_and_of_the_longest_example(
    run, asked, tokenizer, tokenizer_path
):
    folder, prompts = asked
    size = max(len(tokenizer.encode(a)) + len(tokenizer.encode(b)) for a, b in prompts)
    found = seqio_prompts.of_questions(folder, tokenizer_path, "cot", 17)
    assert found == {"inputs": size, "targets": 17}
    rows = _examples("self_generated")
    assert seqio_prompts.of_examples(run, tokenizer=tokenizer_path) == {
        "inputs": max(len(tokenizer.encode(r.prefix) + tokenizer.encode(r.inputs)) for r in rows),
        "targets": len(tokenizer.encode(" The answer is 7.\n\n")),
    }


def test_a_prompt_that_does_not_fit_is_an_error_that_names_the_remedy(asked, tokenizer_path):
    folder, _ = asked
    name = seqio_rounds.questions(folder, tokenizer=tokenizer_path)
    lengths = seqio_prompts.of_questions(folder, tokenizer_path)
    mixture = seqio.get_mixture_or_task(name)
    for task in mixture.tasks:
        assert len(list(task.get_dataset(lengths, "test", shuffle=False, num_epochs=1))) == 3
    lengths["inputs"] -= 1
    with pytest.raises(LmsiError, match=r"the longest prompt has \d+ tokens.*unset"):
        mixture.get_dataset(lengths, "test", shuffle=False, num_epochs=1)


def test_lengths_that_no_example_fits_are_refused(run, tokenizer_path):
    name = seqio_rounds.mixture(run, tokenizer=tokenizer_path)
    with pytest.raises(LmsiError, match="no example fits TASK_FEATURE_LENGTHS"):
        _batches(name, pack=True, lengths={"inputs": 64, "targets": 3})


def test_new_tokens_are_those_of_the_runs_evaluation(tmp_path):
    with pytest.raises(LmsiError, match="set MAX_NEW_TOKENS"):
        seqio_prompts.new_tokens(tmp_path)
    folder = tmp_path / "round_0" / "eval"
    folder.mkdir(parents=True)
    record = {"config": {"Sampling": {"max_new_tokens": 90}}}
    write_record(folder / "config.json", record)
    assert seqio_prompts.new_tokens(tmp_path) == 90
    assert seqio_prompts.new_tokens(tmp_path, "standard") == 32
