"""Prompts and examples of a run as SeqIO tasks, encoded as by the engine and the trainer.

A task has columns of equal length: prefix, inputs, targets and further fields of a row. The metric
of prompts is our accuracy, so `seqio.Evaluator` and T5X's eval report the figures of `lmsi eval`.

T5X truncates features longer than `TASK_FEATURE_LENGTHS`, which would cut off the question of a
prompt. Our gin files take the lengths from `of_questions` and `of_examples`; a user's are checked.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf
from etils import epath

from lmsi_jax.config import Chat
from lmsi_jax.errors import LmsiError
from lmsi_jax.evaluation.accuracy import score
from lmsi_jax.interop.chat_prompts import open_writer
from lmsi_jax.interop.seqio_vocabularies import Pieces, Tokens, encode_parts
from lmsi_jax.models.tokenizers import encode_text, open_tokenizer
from lmsi_jax.prompts import PLAIN, SEPARATOR, STOP_STRINGS, PromptStyle, PromptWriter
from lmsi_jax.prompts import new_tokens as limit_of
from lmsi_jax.records import Example, Exemplar, Question, Sample, Text, plain_text
from lmsi_jax.rollout.stops import end_at_stop, first_stop
from lmsi_jax.runtime.files import embedded_path, read_record
from lmsi_jax.runtime.store import ShardStore
from lmsi_jax.tasks import registry

Texts = Mapping[str, Sequence[Any]]


def tokenizer_path(tokenizer: str) -> str:
    """Returns the path of `Run.tokenizer`."""
    return str(embedded_path("tokenizer.model")) if tokenizer == "embedded" else tokenizer


def examples(
    run_dir: epath.PathLike, round_index: int, human_rate: float
) -> dict[str, tuple[Texts, float]]:
    """Returns a round's training examples and their rate, by source.

    Raises:
      LmsiError: the round has no examples of a source whose rate is above 0.
    """
    store = ShardStore(epath.Path(run_dir) / f"round_{round_index}" / "mix")
    parts = {}
    for source, rate in {"self_generated": 1.0 - human_rate, "human": human_rate}.items():
        if rate > 0:
            shards = [name for name in store.names() if name.startswith(f"{source}-")]
            rows = [Example.from_json(row) for name in shards for row in store.read(name)]
            if any(row.weight < 0 for row in rows):
                raise LmsiError(
                    f"{store.directory} has rows to punish, which T5X's loss cannot; take the "
                    "penalty out of Mixing.selection and repeat `lmsi mix`"
                )
            if not rows:
                raise LmsiError(
                    f"{store.directory} holds no {source} examples; finish `lmsi mix`, or change "
                    "mixture.human_rate or mixture.round_index"
                )
            parts[source] = (_example_columns(rows), rate)
    return parts


def _example_columns(rows: Sequence[Example]) -> Texts:
    return {
        "prefix": [row.prefix for row in rows],
        "inputs": [row.inputs for row in rows],
        # As in the trainer: the model learns the separator, which ends a sample.
        "targets": [
            row.targets + SEPARATOR if isinstance(row.targets, str) else row.targets for row in rows
        ],
        "weight": [row.weight for row in rows],
    }


def question_texts(
    run_dir: epath.PathLike, prompt_style: PromptStyle, tokenizer: str = "embedded"
) -> dict[str, dict[str, Texts]]:
    """Returns a run's questions as prompts, by task and split, in the chat template if it has one.

    Raises:
      LmsiError: the folder has no questions.
    """
    store = ShardStore(epath.Path(run_dir) / "questions")
    writer = _writer(epath.Path(run_dir), tokenizer)
    tasks: dict[str, dict[str, Texts]] = {}
    for shard in store.names():
        split, _, task = shard.partition("-")
        if split in registry.SPLITS:
            rows = [Question.from_json(row) for row in store.read(shard)]
            exemplars = [Exemplar.from_json(row) for row in store.read(f"exemplars-{task}")]
            columns = prompt_columns(rows, exemplars, prompt_style, writer)
            tasks.setdefault(task, {})[split] = columns
    if not tasks:
        raise LmsiError(f"{store.directory} holds no questions; run `lmsi run` into {run_dir}")
    return tasks


def _writer(run_dir: epath.Path, tokenizer: str) -> PromptWriter:
    """Returns what wrote the prompts of a run, as its evaluation or its sampling recorded it."""
    for stage in ("round_0/eval", "round_1/sample"):
        record = run_dir / stage / "config.json"
        chat = read_record(record)["config"].get("Chat") if record.exists() else None
        if chat:
            fields = {field.name: chat[field.name] for field in dataclasses.fields(Chat)}
            return open_writer(Chat(**fields), open_tokenizer(tokenizer_path(tokenizer)))
    return PLAIN


def prompt_columns(
    rows: Sequence[Question],
    exemplars: Sequence[Exemplar],
    prompt_style: PromptStyle,
    writer: PromptWriter = PLAIN,
) -> Texts:
    """Returns the columns of questions as prompts."""
    prompts = [writer.prompt(row, exemplars, prompt_style) for row in rows]
    return {
        "prefix": [prefix for prefix, _ in prompts],
        "inputs": [text for _, text in prompts],
        "targets": [row.gold or "" for row in rows],
        "also": ["\n".join(row.also) for row in rows],
        "question": [row.text for row in rows],
        "uid": [row.uid for row in rows],
        "inputs_pretokenized": [f"{prefix}{text}" for prefix, text in prompts],
        "targets_pretokenized": [row.gold or "" for row in rows],
        "kind": [row.kind for row in rows],
        "task": [row.task for row in rows],
    }


_LABELS = ("uid", "kind", "task", "question", "answer", "also")


def add(
    name: str,
    splits: Mapping[str, Callable[[], Texts]],
    vocabulary: Pieces | Tokens,
    check: Callable[..., tf.data.Dataset],
    *,
    weighted: bool = False,
    prompt_style: PromptStyle | None = None,
    structured: bool = False,
) -> None:
    """Registers a task, in place of an earlier one of the same name.

    Args:
      name: the name of the task.
      splits: split -> function that returns its columns, called when the split is read.
      vocabulary: the vocabulary of inputs and targets.
      check: a preprocessor that checks the lengths of the encoded texts.
      weighted: if True, there is a column `weight`.
      prompt_style: the style of prompts; None for examples, which have no metric.
      structured: if True, texts may have control tokens, see `has_controls`.
    """
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed  # all in memory; SeqIO shuffles it
        columns = dict(splits[split]())
        if structured:
            columns["answer"] = [plain_text(text) for text in columns["targets"]]
            columns |= {name: [json.dumps(text) for text in columns[name]] for name in _TEXTS}
        return tf.data.Dataset.from_tensor_slices(columns)

    text = seqio.Feature(vocabulary, add_eos=False)
    features = {"inputs": text, "targets": text}
    if weighted:
        number = seqio.PassThroughVocabulary(size=0)
        features["weight"] = seqio.Feature(number, add_eos=False, dtype=tf.float32, rank=0)
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=list(splits)),
        preprocessors=[functools.partial(_tokenize, structured=structured), check],
        output_features=features,
        postprocess_fn=_answer if prompt_style else None,
        metric_fns=[functools.partial(_accuracy, prompt_style)] if prompt_style else [],
    )


def mix(name: str, parts: Sequence[tuple[str, float]]) -> str:
    """Registers a mixture of (task, rate), in place of an earlier one; returns its name."""
    if name in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add(name, list(parts))
    return name


_TEXTS = ("prefix", "inputs", "targets")


def has_controls(texts: Texts) -> bool:
    """Returns True if a text of a task's rows has control tokens apart."""
    return any(not isinstance(text, str) for name in _TEXTS for text in texts[name])


def _tokenize(
    dataset: tf.data.Dataset, output_features: Mapping[str, Any], structured: bool
) -> tf.data.Dataset:
    """Encodes prefix, inputs and targets separately, as our trainer and engine do."""
    vocabulary = output_features["inputs"].vocabulary

    def one(row: dict[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in row.items() if name != "prefix"}
        parts = [row[name] for name in _TEXTS]
        prefix, inputs, targets = encode_parts(vocabulary, parts, structured)
        prompt = tf.concat([prefix, inputs], axis=0)
        return {"answer": row["targets"], **rest, "inputs": prompt, "targets": targets}

    return dataset.map(one, num_parallel_calls=tf.data.AUTOTUNE)


def _answer(text: Any, example: Mapping[str, Any], is_target: bool = False) -> Question | Sample:
    """Returns the question with its gold answer, or the decoded sample up to its stop."""
    uid, kind, task, question, gold, also = (_text(example[name]) for name in _LABELS)
    if is_target:
        row = {"uid": uid, "task": task, "text": question, "kind": kind, "gold": gold}
        return Question.from_json({**row, "also": also.splitlines()})
    stop = first_stop(text, STOP_STRINGS)
    end = "end_token" if stop is None else end_at_stop(text[stop:], STOP_STRINGS)
    return Sample(uid=uid, sample_index=0, text=text[:stop], tokens=0, logprob=0.0, end=end)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _accuracy(
    prompt_style: str, targets: Sequence[Question], predictions: Sequence[Sample]
) -> dict[str, float]:
    """Returns the shares of correct and of parsed answers, as `lmsi eval` does."""
    samples = {sample.uid: [sample] for sample in predictions}
    scores = score(targets, samples, prompt_style, temperature=0.0)
    return {"accuracy": sum(scores.correct) / len(scores.correct), "parsed": scores.parsed}


Lengths = dict[str, int]


def new_tokens(run_dir: epath.PathLike, prompt_style: PromptStyle = "cot") -> int:
    """Returns the limit of new tokens in the evaluation of the run.

    Raises:
      LmsiError: the run has not begun its evaluation.
    """
    record = epath.Path(run_dir) / "round_0" / "eval" / "config.json"
    if not record.exists():
        raise LmsiError(
            f"{record} is missing; run `lmsi run` into {run_dir}, or set MAX_NEW_TOKENS"
        )
    return limit_of(prompt_style, read_record(record)["config"]["Sampling"]["max_new_tokens"])


def of_questions(
    run_dir: epath.PathLike,
    tokenizer: str = "embedded",
    prompt_style: PromptStyle = "cot",
    max_new_tokens: int = 256,
) -> Lengths:
    """Returns the lengths for the longest prompt of a run's questions and for its answer."""
    tasks = question_texts(run_dir, prompt_style, tokenizer).values()
    prompts = [
        size
        for splits in tasks
        for texts in splits.values()
        for size in _input_lengths(texts, tokenizer)
    ]
    return {"inputs": max(prompts), "targets": max_new_tokens}


def of_examples(
    run_dir: epath.PathLike,
    round_index: int = 1,
    tokenizer: str = "embedded",
    human_rate: float = 0.0,
) -> Lengths:
    """Returns the lengths of the longest prompt and target of a round's examples."""
    sources = examples(run_dir, round_index, human_rate).values()
    pairs = [pair for texts, _ in sources for pair in _pairs(texts, tokenizer)]
    return {"inputs": max(a for a, _ in pairs), "targets": max(b for _, b in pairs)}


def check_prompts(
    name: str, texts: Texts, tokenizer: str, lengths: Mapping[str, int], remedy: str
) -> None:
    """Raises LmsiError if SeqIO would truncate a prompt.

    Args:
      name: the task.
      texts: its prompts.
      tokenizer: `Run.tokenizer`.
      lengths: SeqIO's `sequence_length`, T5X's TASK_FEATURE_LENGTHS.
      remedy: what to do other than to raise it.
    """
    longest, limit = max(_input_lengths(texts, tokenizer)), lengths["inputs"]
    if longest > limit:
        raise LmsiError(
            f"{name}: the longest prompt has {longest} tokens, the sequence length of 'inputs' is "
            f"{limit}; raise it, or {remedy}"
        )


def check_examples(name: str, texts: Texts, tokenizer: str, lengths: Mapping[str, int]) -> None:
    """Raises LmsiError if no example fits the lengths, for T5X would search forever."""
    pairs = _pairs(texts, tokenizer)
    if not any(a <= lengths["inputs"] and b <= lengths["targets"] for a, b in pairs):
        shortest = min(pairs, key=sum)
        raise LmsiError(
            f"{name}: no example fits TASK_FEATURE_LENGTHS; the shortest needs {shortest[0]} for "
            f"'inputs' and {shortest[1]} for 'targets'. Unset, it follows from the run"
        )


def _pairs(texts: Texts, tokenizer: str) -> list[tuple[int, int]]:
    count = _counter(tokenizer_path(tokenizer))
    targets = zip(texts["targets"], texts["inputs"], strict=True)
    lengths = [count(text, before) for text, before in targets]
    return list(zip(_input_lengths(texts, tokenizer), lengths, strict=True))


def _input_lengths(texts: Texts, tokenizer: str) -> list[int]:
    """Counts the tokens of each prompt; prefix and inputs are encoded separately."""
    count = _counter(tokenizer_path(tokenizer))
    both = zip(texts["prefix"], texts["inputs"], strict=True)
    return [count(prefix, "") + count(text, prefix) for prefix, text in both]


@functools.cache
def _counter(path: str) -> Callable[[Text, Text], int]:
    """Returns a function that counts the tokens of a text after another, once for each."""
    tokenizer = open_tokenizer(path)
    return functools.cache(lambda text, before: len(encode_text(tokenizer, text, before)))
