"""Evaluation: a round's model on the test questions, in each prompt style.

round_R/eval/TASK-STYLE-00000-of-00002    samples
             votes-TASK-STYLE             the votes on them, one per question
             scores.json                  accuracies
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, cast

from etils import epath

from lmsi_jax.config import Sampling
from lmsi_jax.errors import LmsiError
from lmsi_jax.evaluation.accuracy import score_votes
from lmsi_jax.pipeline.context import Round, read_samples, test_job_name
from lmsi_jax.pipeline.sample_shards import draw_samples, make_job
from lmsi_jax.pipeline.step import DECODING, Fields, Step
from lmsi_jax.pipeline.vote import VOTING, cast_vote, scorer_record
from lmsi_jax.prompts import PromptStyle, new_tokens
from lmsi_jax.records import Question
from lmsi_jax.runtime.files import read_json, write_json
from lmsi_jax.runtime.store import ShardStore

_SCORES = "scores.json"
# Accuracy is of the vote on all samples; the report says what adaptive consistency would do to it.
_NEVER: dict[str, Any] = {"adaptive_consistency": None, "token_logprobs": False}


class EvaluateStep(Step):
    """Evaluates the model that a round ended with."""

    name = "eval"
    settings = (
        # Of the checkpoints that are compared, the model's fingerprint is among the inputs.
        Fields(part="evaluation", without=("checkpoints", "temperature", "temperature_after")),
        Fields(part="evaluation", names=("temperature",), when=lambda round: round.index == 0),
        Fields(part="evaluation", names=("temperature_after",), when=lambda round: round.index > 0),
        *VOTING,
        *DECODING,
        Fields(
            part="sampling",
            without=(  # evaluation sets these itself
                *("num_samples", "temperature", "token_logprobs"),
                *("adaptive_consistency", "adaptive_consistency_every"),
            ),
        ),
    )
    inputs = ("model", "questions")

    def derived(self, round: Round) -> dict[str, Any]:
        return scorer_record(round)

    def share(self, round: Round) -> None:
        asked = list(_asked(round))
        jobs = [
            make_job(
                test_job_name(task, style),
                questions,
                round.context.exemplars(task),
                "cot" if style == "self_consistency" else cast(PromptStyle, style),
                _sampling(round, style),
            )
            for task, style, questions in asked
        ]
        label = f"round {round.index}" if round.index else "base model"
        draw_samples(
            round,
            jobs,
            {question.uid: question for _, _, questions in asked for question in questions},
            round.folder(self.name),
            model=round.index,
            label=f"{label}: evaluation",
        )

    def write(self, round: Round, store: ShardStore) -> None:
        scores = []
        for task, style, questions in _asked(round):
            name = test_job_name(task, style)
            samples = read_samples(store, name)
            votes = [cast_vote(round, question, samples[question.uid]) for question in questions]
            store.write(f"votes-{name}", [vote.to_json() for vote in votes])
            temperature = _sampling(round, style).temperature
            scores.append(score_votes(questions, samples, votes, style, temperature))
        write_json(store.directory / _SCORES, [dataclasses.asdict(one) for one in scores])
        round.reader.clear()


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
            "with the same configuration: it makes it anew of the samples that are there"
        ) from None


def _asked(round: Round) -> Iterator[tuple[str, str, list[Question]]]:
    """Yields (task, prompt style, its questions), in the order of the scores."""
    evaluation = round.settings.evaluation
    for task, questions in round.context.load_questions("test").items():
        for style in evaluation.prompt_styles:
            several = style == "self_consistency"
            yield task, style, questions[: evaluation.vote_count] if several else questions


def _sampling(round: Round, style: str) -> Sampling:
    evaluation, sampling = round.settings.evaluation, round.settings.sampling
    if style == "self_consistency":
        return dataclasses.replace(
            sampling,
            num_samples=evaluation.num_samples,
            temperature=evaluation.temperature_after if round.index else evaluation.temperature,
            **_NEVER,
        )
    tokens = new_tokens(style, sampling.max_new_tokens)
    return dataclasses.replace(
        sampling, num_samples=1, temperature=0.0, max_new_tokens=tokens, **_NEVER
    )
