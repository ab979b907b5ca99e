"""Sampling: questions -> samples, in shards that several processes share.

A task's shards are called by its name; with generated prompts there is a job for each of them,
`TASK-prompt003`, and `TASK-prompt003-standing-in` for the questions that the prompt before shows.
`human-TASK` has the model's own sample on each question with a given solution, if pairs need it.
"""

import dataclasses

from lmsi_jax.augmentation import groups
from lmsi_jax.pipeline.context import Round, Samples, prompt_job_name, read_samples
from lmsi_jax.pipeline.questions import worked_questions
from lmsi_jax.pipeline.sample_shards import Job, draw_samples, make_job
from lmsi_jax.pipeline.step import DECODING, Fields, Step
from lmsi_jax.records import Question


def _stops_early(round: Round) -> bool:
    return round.settings.sampling.adaptive_consistency is not None


def _plays(round: Round) -> bool:
    """Returns True if the model also answers the questions that have given solutions (SPIN)."""
    preference = round.settings.training.preference
    return preference is not None and preference.form == "spin"


class SampleStep(Step):
    """Samples the round's questions with the model of the round before."""

    name = "sample"
    settings = (
        Fields(part="sampling"),
        *DECODING,
        Fields(part="voting", names=("conclusions",), when=_stops_early),  # it counts votes
        Fields(part="mixing", names=("human_examples",), when=_plays),
    )
    inputs = ("model", "questions", "generate", "prompts")

    def share(self, round: Round) -> None:
        by_task = round.questions
        asked = [question for rows in by_task.values() for question in rows]
        jobs = [job for task, rows in by_task.items() for job in _jobs(round, task, rows)]
        if _plays(round):
            given = {task: [row for row, _ in worked_questions(round, task)] for task in by_task}
            asked += [question for rows in given.values() for question in rows]
            jobs += [_given_job(round, task, rows) for task, rows in given.items()]
        draw_samples(
            round,
            jobs,
            {question.uid: question for question in asked},
            round.folder(self.name),
            model=round.index - 1,
            label=f"round {round.index}: sampling",
        )


def _jobs(round: Round, task: str, rows: list[Question]) -> list[Job]:
    """Returns one job with the task's exemplars, or one for each generated prompt."""
    sampling, prompts = round.settings.sampling, round.few_shots(task)
    if not prompts:
        return [make_job(task, rows, round.context.exemplars(task), "cot", sampling)]
    by_uid = {row.uid: row for row in rows}
    return [
        make_job(
            prompt_job_name(task, group.prompt, group.standing_in),
            [by_uid[uid] for uid in group.uids],
            prompts[group.prompt].exemplars,
            "cot",
            sampling,
            group.numbers,
        )
        for group in groups(list(by_uid), sampling.num_samples, prompts)
    ]


def _given_job(round: Round, task: str, rows: list[Question]) -> Job:
    single = dataclasses.replace(round.settings.sampling, num_samples=1, adaptive_consistency=None)
    return make_job(f"human-{task}", rows, round.context.exemplars(task), "cot", single)


def read_given(round: Round, task: str) -> Samples:
    """Reads the model's own sample on each question with a given solution, by uid."""
    return read_samples(round.store("sample"), f"human-{task}")
