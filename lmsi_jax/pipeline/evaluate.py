"""Evaluation: a round's model on the test questions, for each prompt style."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, cast

from etils import epath

from lmsi_jax.config import Sampling
from lmsi_jax.errors import LmsiError
from lmsi_jax.evaluation.accuracy import score
from lmsi_jax.pipeline.context import Context
from lmsi_jax.pipeline.questions import read_exemplars
from lmsi_jax.pipeline.sample_shards import draw_samples, make_job, read_samples
from lmsi_jax.pipeline.vote import score_samples, vote_settings
from lmsi_jax.prompts import PromptStyle, new_tokens
from lmsi_jax.records import Question
from lmsi_jax.runtime.files import read_json, write_json
from lmsi_jax.runtime.store import ShardStore

_SCORES = "scores.json"
_NEVER: dict[str, Any] = {"adaptive_consistency": None, "token_logprobs": False}
_OWN = {
    "num_samples",
    "temperature",
    "adaptive_consistency",
    "adaptive_consistency_every",
    "token_logprobs",
}


def evaluate(context: Context, round_index: int, inputs: dict[str, str]) -> str:
    """Evaluates the model that a round ended with; returns the stage's fingerprint."""
    run = context.run
    evaluation = dataclasses.asdict(run.evaluation)
    del evaluation["checkpoints"]  # the model's fingerprint is among the inputs
    del evaluation["temperature" if round_index else "temperature_after"]  # the other one's
    config = {
        "Evaluation": evaluation,
        **vote_settings(run.voting),
        **context.decoding_settings,
        "Sampling": {
            name: value
            for name, value in dataclasses.asdict(run.sampling).items()
            if name not in _OWN  # evaluation sets these itself
        },
    }
    stage = context.stage(round_index, "eval", config, inputs)
    if context.done(stage):
        return stage.fingerprint
    with context.processes.together("eval", round_index):
        evaluate_shards(context, round_index)
    store = ShardStore(stage.directory)
    scores = [
        score(
            asked,
            read_samples(store, _job_name(task, prompt_style)),
            prompt_style,
            _sampling(context, round_index, prompt_style).temperature,
            run.voting,
            functools.partial(score_samples, context),
        )
        for task, prompt_style, asked in _asked(context)
    ]
    write_json(stage.directory / _SCORES, [dataclasses.asdict(one) for one in scores])
    stage.finish()
    return stage.fingerprint


def evaluate_shards(context: Context, round_index: int) -> None:
    """Samples this process' shards of an evaluation."""
    asked = list(_asked(context))
    jobs = [
        make_job(
            _job_name(task, prompt_style),
            questions,
            read_exemplars(context, task),
            "cot" if prompt_style == "self_consistency" else cast(PromptStyle, prompt_style),
            _sampling(context, round_index, prompt_style),
        )
        for task, prompt_style, questions in asked
    ]
    label = "base model" if round_index == 0 else f"round {round_index}"
    draw_samples(
        context,
        jobs,
        {question.uid: question for _, _, questions in asked for question in questions},
        context.folder(round_index, "eval"),
        model=round_index,
        round_index=round_index,
        label=f"{label}: evaluation",
    )


def read_scores(run: epath.PathLike, round_index: int) -> list[dict[str, Any]]:
    """Reads the scores of a round's evaluation in a run's folder.

    Raises:
      LmsiError: they are missing or damaged.
    """
    path = epath.Path(run) / f"round_{round_index}" / "eval" / _SCORES
    try:
        return read_json(path)
    except LmsiError:
        raise LmsiError(
            f"{path} is missing or damaged; repeat `lmsi run`, or the other command that evaluated "
            "with the same configuration: it makes it anew of the paths that are there"
        ) from None


def _asked(context: Context) -> Iterator[tuple[str, str, list[Question]]]:
    """Yields (task, prompt_style, its questions), in the order of the scores."""
    evaluation = context.run.evaluation
    for task, questions in context.load_questions("test").items():
        for prompt_style in evaluation.prompt_styles:
            votes = prompt_style == "self_consistency"
            yield task, prompt_style, questions[: evaluation.vote_count] if votes else questions


def _job_name(task: str, prompt_style: str) -> str:
    return f"{task}-{prompt_style}"


def _sampling(context: Context, round_index: int, prompt_style: str) -> Sampling:
    evaluation, sampling = context.run.evaluation, context.run.sampling
    if prompt_style == "self_consistency":
        after = evaluation.temperature_after if round_index else evaluation.temperature
        # Accuracy is of the vote on all paths; the report says what adaptive consistency would do
        # to it.
        return dataclasses.replace(
            sampling, num_samples=evaluation.num_samples, temperature=after, **_NEVER
        )
    tokens = new_tokens(prompt_style, sampling.max_new_tokens)
    return dataclasses.replace(
        sampling, num_samples=1, temperature=0.0, max_new_tokens=tokens, **_NEVER
    )
