"""The loop as plain functions, for scripts and notebooks; `import lmsi_jax` offers them all.

    model = load("embedded")
    samples = sample(model, questions, exemplars, sampling=Sampling(num_samples=16))
    votes = vote(questions, samples)
    rows = select(questions, samples, votes)
    better = train(model, mix(rows, exemplars), "runs/mine")
    evaluate(better, test_questions, exemplars)

Each function takes records and returns records. `lmsi run` does the same with files between the
steps, several processes, restarts and a report. Only `load`, `sample`, `engine`, `train` and
`evaluate` import JAX, at their first call: texts of any origin are voted on without it.

    question = Question(uid="q1", task="mine", text="Q: How many apples?", kind="number")
    vote([question], {"q1": ["9 + 9 = 18. The answer is 18.", "Answer: 18"]})["q1"].winner
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from etils import epath

from lmsi_jax import mixing, voting
from lmsi_jax.config import (
    Decoding,
    FileTask,
    Filter,
    ModelConfig,
    Sampling,
    TensorBoard,
    Tracker,
    Training,
    Voting,
)
from lmsi_jax.errors import LmsiError
from lmsi_jax.evaluation import accuracy
from lmsi_jax.evaluation.accuracy import TaskScore
from lmsi_jax.interop.chat_prompts import make_writer
from lmsi_jax.models.tokenizers import FileTokenizer, open_tokenizer
from lmsi_jax.prompts import (
    PLAIN,
    STOP_STRINGS,
    PlainPrompts,
    PromptStyle,
    PromptWriter,
    new_tokens,
)
from lmsi_jax.records import (
    FORMATS,
    Example,
    Exemplar,
    Format,
    Question,
    Sample,
    Vote,
    check_unique,
    samples_from_texts,
)
from lmsi_jax.rollout.requests import Request, Rollout
from lmsi_jax.runtime.files import embedded_path
from lmsi_jax.selection import rows as selection
from lmsi_jax.selection.rows import Row
from lmsi_jax.tasks import registry
from lmsi_jax.tasks.task import Task

if TYPE_CHECKING:
    from lmsi_jax.models.params import Params
    from lmsi_jax.rollout.engine import Engine

Samples = Mapping[str, Sequence[Sample] | Sequence[str]]
"""The samples of each question, by its uid; texts alone become `records.samples_from_texts`."""
WeightedRow = tuple[Row, float]
"""A voted sample, and the factor of its loss weight."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A decoder with its weights and its tokenizer.

    Attributes:
      config: the shape.
      params: the parameter tree, float32.
      tokenizer: the tokenizer that the weights were trained with.
      tokenizer_path: its file or folder.
      prompts: how it is asked: as a base model, or in its chat template.
    """

    config: ModelConfig
    params: "Params"
    tokenizer: FileTokenizer
    tokenizer_path: str
    prompts: PromptWriter = PLAIN


def load(folder: epath.PathLike = "embedded", *, allow_imports: bool = False) -> Model:
    """Loads a model: the embedded one, an imported one, or one that a run has trained.

    The shape is read from the nearest `model.gin` or `config.gin`; gin's own state is reset by it.

    Args:
      folder: "embedded"; a folder of `lmsi import-hf`; or a run's `round_R/train`.
      allow_imports: runs the modules that the gin file imports, which is otherwise refused.

    Raises:
      LmsiError: there is no checkpoint, its shape is not known, its gin file imports modules, or
        it has weights that are no numbers or were altered after training.
    """
    from lmsi_jax.config.configurables import load_run_of
    from lmsi_jax.models.transformer import parameter_shapes
    from lmsi_jax.training import checkpoints

    embedded = str(folder) == "embedded"
    start = embedded_path(".") if embedded else epath.Path(folder).resolve()
    run = load_run_of(start, allow_imports=allow_imports)
    imported = not embedded and (start / "model.gin").exists()
    weights = epath.Path(run.init_checkpoint) if imported else start
    tokenizer_path = str(
        embedded_path("tokenizer.model")
        if embedded or run.tokenizer == "embedded"
        else run.tokenizer
    )
    checkpoint = checkpoints.find(weights)
    params = checkpoints.load_params(checkpoint, parameter_shapes(run.model))
    checkpoints.check_finite(checkpoint, params)
    if (checkpoint.parent / checkpoints.DIGEST).exists():
        checkpoints.check_digest(checkpoint, checkpoints.digest(params))
    tokenizer = open_tokenizer(tokenizer_path)
    return Model(
        config=run.model,
        params=params,
        tokenizer=tokenizer,
        tokenizer_path=tokenizer_path,
        prompts=make_writer(run.chat, run.mixing.end, tokenizer),
    )


def task(name: str | FileTask, data_dir: str | None = None) -> Task:
    """Returns a task by name: its questions, its answer kind and its exemplars.

    Args:
      name: "purchases", "gsm8k", ... (`lmsi_jax.tasks.registry.NAMES` has all); or a task of your
        own: `config.FileTask(...)` for questions in files, "my_task:TASK" for one in Python.
      data_dir: the folder of its files, if it is a packaged one that reads some.

    Raises:
      LmsiError: there is no such task.
    """
    return registry.get(name, data_dir)


def sample(
    model: Model | Rollout,
    questions: Sequence[Question],
    exemplars: Sequence[Exemplar] = (),
    *,
    prompt_style: PromptStyle = "cot",
    sampling: Sampling = Sampling(),
    decoding: Decoding = Decoding(),
    seed: int = 0,
    round_index: int = 1,
    prompts: PromptWriter | None = None,
) -> dict[str, tuple[Sample, ...]]:
    """Samples answers to questions of one task.

    Args:
      model: the model; or an engine over it, which keeps its compiled programs between calls.
      questions: the questions.
      exemplars: the few-shot examples that all of them share.
      prompt_style: how a question is asked.
      sampling: how many samples of each, and how they are drawn.
      decoding: the engine's layout, for a `Model`.
      seed, round_index: with the question and the sample's index they fix its noise.
      prompts: how questions are asked; None: as `Model.prompts` says, and an engine as base models
        are.

    Returns:
      The samples of each question by uid, in the order of the questions.

    Raises:
      LmsiError: two questions have one uid, or a prompt is longer than the model's context.
    """
    check_unique(questions)
    rollout = engine(model, decoding) if isinstance(model, Model) else model
    if prompts is None:
        prompts = model.prompts if isinstance(model, Model) else PLAIN
    requests = []
    for question in questions:
        prefix, text = prompts.prompt(question, exemplars, prompt_style)
        requests.append(Request(uid=question.uid, prefix=prefix, text=text, sampling=sampling))
    responses = rollout.generate(requests, seed=seed, round_index=round_index)
    by_number = {response.number: response.samples for response in responses}
    return {question.uid: by_number[number] for number, question in enumerate(questions)}


def engine(model: Model, decoding: Decoding = Decoding()) -> "Engine":
    """Returns a decode engine over a model; several calls of `sample` can share it."""
    from lmsi_jax.rollout.engine import Engine

    return Engine(model.config, model.params, model.tokenizer, decoding)


def vote(
    questions: Sequence[Question], samples: Samples, rule: Voting = Voting()
) -> dict[str, Vote]:
    """Votes on each question's samples.

    Args:
      questions: the questions; `uid`, `text` and `kind` are read.
      samples: theirs, or their texts.
      rule: how samples are weighed and ties broken.

    Returns:
      The votes by uid.

    Raises:
      LmsiError: two questions have one uid.
    """
    check_unique(questions)
    return {
        question.uid: voting.cast(question, _samples_of(question, samples), rule)
        for question in questions
    }


def _samples_of(question: Question, samples: Samples) -> list[Sample]:
    """Returns a question's samples, made from texts if texts were given."""
    drawn = [sample for sample in samples[question.uid] if isinstance(sample, Sample)]
    texts = [text for text in samples[question.uid] if isinstance(text, str)]
    return drawn or samples_from_texts(question.uid, texts)


def select(
    questions: Sequence[Question],
    samples: Samples,
    votes: Mapping[str, Vote],
    filters: Sequence[Filter] = (),
) -> list[WeightedRow]:
    """Keeps the samples that agree with their question's vote and pass the filters.

    Args:
      questions: the questions of one task.
      samples: theirs.
      votes: theirs.
      filters: settings of `lmsi_jax.config`, such as `MinConfidence(confidence=0.6)`, that need no
        scores; `lmsi run` computes scores for those that do.

    Returns:
      Rows with the factor of their weight, by question and index.

    Raises:
      LmsiError: a filter needs a fact that is not there, or two questions have one uid.
    """
    check_unique(questions)
    rows = [
        row
        for question in questions
        for row in selection.voted_rows(
            question, _samples_of(question, samples), votes[question.uid]
        )
    ]
    chosen = selection.select(rows, filters)
    return list(zip(chosen.rows, chosen.weights, strict=True))


def mix(
    rows: Sequence[WeightedRow],
    exemplars: Sequence[Exemplar],
    formats: Sequence[Format] = FORMATS,
    prompts: PromptWriter = PLAIN,
) -> list[Example]:
    """Writes selected samples as training examples in LMSI's formats.

    Args:
      rows: from `select`.
      exemplars: the few-shot examples of the task.
      formats: the formats to write.
      prompts: how questions are asked, `Model.prompts`.
    """
    by_question: dict[str, list[WeightedRow]] = {}
    for row, weight in rows:
        by_question.setdefault(row.question.uid, []).append((row, weight))
    return [
        example
        for group in by_question.values()
        for example in mixing.examples(
            group[0][0].question, group, exemplars, formats=formats, writer=prompts
        )
    ]


def train(
    model: Model,
    examples: Sequence[Example],
    directory: epath.PathLike,
    training: Training = Training(),
    *,
    seed: int = 0,
    trackers: Sequence[Tracker] = (TensorBoard(),),
) -> Model:
    """Fine-tunes a model on examples; an interrupted training resumes from its last checkpoint.

    Args:
      model: where training starts.
      examples: from `mix`, of any number of tasks.
      directory: gets the checkpoints and the metrics.
      training: steps, optimizer and batch shape.
      seed: the order of the examples.
      trackers: get the metrics; a resumed training continues their runs.

    Returns:
      The model after the last step.

    Raises:
      LmsiError: there are no examples, the loss is not finite, or a tracker is not installed.
    """
    from lmsi_jax.integrations.trackers import RunInfo, Trackers
    from lmsi_jax.training.data import Examples
    from lmsi_jax.training.trainer import train as run_training

    rows = Examples(
        {"self_generated": examples}, {"self_generated": 1.0}, model.tokenizer_path, seed=seed
    )
    folder = epath.Path(directory)
    info = RunInfo(name=folder.name, folder=folder, settings=dataclasses.asdict(training))
    with contextlib.closing(Trackers(trackers, info)) as opened:
        track = opened.of_training()
        params = run_training(model.config, training, model.params, rows, directory, track=track)
    return dataclasses.replace(model, params=params)


def evaluate(
    model: Model | Rollout,
    questions: Sequence[Question],
    exemplars: Sequence[Exemplar] = (),
    *,
    prompt_style: PromptStyle = "cot",
    num_samples: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 256,
    seed: int = 0,
    prompts: PromptWriter | None = None,
) -> TaskScore:
    """Measures a model on questions of one task with known answers.

    Args:
      model: the model, or an engine over it.
      questions: the questions; each has its `gold` answer.
      exemplars: the few-shot examples that all of them share.
      prompt_style: how a question is asked.
      num_samples: 1 for one answer; more for the vote of so many (set `temperature` then).
      temperature: of sampling; 0 is greedy.
      max_new_tokens: the limit of a sample.
      seed: fixes the samples, if they are not greedy.
      prompts: how questions are asked, see `sample`. In a chat template samples end at the model's
        own end alone.

    Returns:
      `TaskScore`, with `accuracy` and whether each question was answered right.

    Raises:
      LmsiError: a question has no answer, as those of the train split.
    """
    if unlabelled := next((one for one in questions if one.gold is None), None):
        raise LmsiError(
            f"question {unlabelled.uid!r} has no answer to compare with; take questions of the "
            "test split"
        )
    if prompts is None:
        prompts = model.prompts if isinstance(model, Model) else PLAIN
    sampling = Sampling(
        num_samples=num_samples,
        temperature=temperature,
        max_new_tokens=new_tokens(prompt_style, max_new_tokens),
        stop=STOP_STRINGS if isinstance(prompts, PlainPrompts) else (),
    )
    samples = sample(
        model,
        questions,
        exemplars,
        prompt_style=prompt_style,
        sampling=sampling,
        seed=seed,
        prompts=prompts,
    )
    name = prompt_style if num_samples == 1 else "self_consistency"
    return accuracy.score(questions, samples, name, temperature)
