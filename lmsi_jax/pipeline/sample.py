"""Sampling: questions -> paths, in shards that several processes share.

A task's shards are called by its name; with generated prompts there is a job for each of them,
`TASK-prompt003`, and `TASK-prompt003-standing-in` for the questions that the prompt before shows.
`human-TASK` has the model's own path on each question with a given solution, where pairs need it.
"""

import dataclasses
from typing import Any

from lmsi_jax.augmentation import FewShot, Group, groups
from lmsi_jax.pipeline.augment import read_prompts, training_questions
from lmsi_jax.pipeline.context import Context, settings_record
from lmsi_jax.pipeline.questions import read_exemplars, worked_questions
from lmsi_jax.pipeline.sample_shards import Job, draw_samples, make_job, read_samples
from lmsi_jax.records import Question, Sample
from lmsi_jax.runtime.store import ShardStore

Paths = dict[str, list[Sample]]


def sample(context: Context, round_index: int, inputs: dict[str, str]) -> str:
    """Samples the train questions' paths with the model of the round before.

    Returns:
      The stage's fingerprint.
    """
    stage = context.stage(round_index, "sample", _settings(context, round_index), inputs)
    if context.done(stage):
        return stage.fingerprint
    with context.processes.together("sample", round_index):
        sample_shards(context, round_index)
    stage.finish()
    return stage.fingerprint


def _settings(context: Context, round_index: int) -> dict[str, Any]:
    """What the paths, and of which questions there are some, depend on."""
    run = context.run_in(round_index)
    settings = {**settings_record(run.sampling), **context.decoding_settings}
    if run.sampling.adaptive_consistency is not None:  # it counts votes
        settings["Voting"] = {"conclusions": run.voting.conclusions}
    if _plays(context):
        settings["Mixing"] = {"human_examples": run.mixing.human_examples}
    return settings


def sample_shards(context: Context, round_index: int) -> None:
    """Samples this process' shards of a round."""
    by_task = training_questions(context, round_index)
    asked = [question for rows in by_task.values() for question in rows]
    jobs = [
        job for task, rows in by_task.items() for job in _jobs(context, round_index, task, rows)
    ]
    if _plays(context):
        given = {task: [row for row, _ in worked_questions(context, task)] for task in by_task}
        asked += [question for rows in given.values() for question in rows]
        jobs += [_given_job(context, round_index, task, rows) for task, rows in given.items()]
    draw_samples(
        context,
        jobs,
        {question.uid: question for question in asked},
        context.folder(round_index, "sample"),
        model=round_index - 1,
        round_index=round_index,
        label=f"round {round_index}: sampling",
    )


def _plays(context: Context) -> bool:
    """Whether the model also answers the questions that have given solutions (SPIN)."""
    preference = context.run.training.preference
    return preference is not None and preference.form == "spin"


def read_round(context: Context, round_index: int) -> Paths:
    """Reads all paths of a round by question uid."""
    samples: Paths = {}
    for task in dict.fromkeys(context.questions.train):
        samples |= read_task(context, round_index, task)
    return samples


def read_task(context: Context, round_index: int, task: str) -> Paths:
    """Reads a task's paths of a round by question uid, in index order."""
    store = ShardStore(context.folder(round_index, "sample"))
    made = read_prompts(context, round_index, task)
    if not made:
        return read_samples(store, task)
    samples: Paths = {}
    names = (_name(task, n, standing_in) for n in range(len(made)) for standing_in in (False, True))
    for name in names:
        for uid, rows in read_samples(store, name).items():
            samples.setdefault(uid, []).extend(rows)
    return {
        uid: sorted(rows, key=lambda sample: sample.sample_index) for uid, rows in samples.items()
    }


def read_given(context: Context, round_index: int, task: str) -> Paths:
    """Reads the model's own path on each question with a given solution, by uid."""
    return read_samples(ShardStore(context.folder(round_index, "sample")), _given_name(task))


def _jobs(context: Context, round_index: int, task: str, rows: list[Question]) -> list[Job]:
    """One job with the task's exemplars, or one for each group of paths and its prompt."""
    sampling = context.run_in(round_index).sampling
    made = read_prompts(context, round_index, task)
    if not made:
        return [make_job(task, rows, read_exemplars(context, task), "cot", sampling)]
    by_uid = {row.uid: row for row in rows}

    def job(group: Group, prompt: FewShot) -> Job:
        """The paths of one group."""
        name = _name(task, group.prompt, group.standing_in)
        some = [by_uid[uid] for uid in group.uids]
        return make_job(name, some, prompt.exemplars, "cot", sampling, group.numbers)

    return [job(one, made[one.prompt]) for one in groups(list(by_uid), sampling.num_samples, made)]


def _given_job(context: Context, round_index: int, task: str, rows: list[Question]) -> Job:
    """One path of each question with a given solution."""
    sampling = context.run_in(round_index).sampling
    one = dataclasses.replace(sampling, num_samples=1, adaptive_consistency=None)
    return make_job(_given_name(task), rows, read_exemplars(context, task), "cot", one)


def _given_name(task: str) -> str:
    return f"human-{task}"


def _name(task: str, prompt: int, standing_in: bool) -> str:
    return f"{task}-prompt{prompt:03d}{'-standing-in' if standing_in else ''}"
