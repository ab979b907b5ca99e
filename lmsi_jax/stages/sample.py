"""Sampling: questions -> paths, in shards that several processes share."""

import dataclasses

from lmsi_jax.decoding.generate import read_paths
from lmsi_jax.records import Path
from lmsi_jax.stages.context import Context, named
from lmsi_jax.stages.paths import draw_paths, make_job
from lmsi_jax.stages.questions import read_exemplars, worked_questions
from lmsi_jax.store import ShardStore

Paths = dict[str, list[Path]]


def sample(context: Context, round_index: int, inputs: dict[str, str]) -> str:
    """Samples the train questions' paths with the model of the round before.

    Returns:
      The stage's fingerprint.
    """
    settings = {**named(context.run.sampling), **context.decoding_settings}
    if _plays(context):
        settings |= {"Mixing": {"strong_count": context.run.mixing.strong_count}}
    stage = context.stage(round_index, "sample", settings, inputs)
    if context.done(stage):
        return stage.fingerprint
    with context.processes.together("sample", round_index):
        sample_shards(context, round_index)
    stage.finish()
    return stage.fingerprint


def sample_shards(context: Context, round_index: int) -> None:
    """Samples this process' shards of a round."""
    sampling = context.run.sampling
    train = context.load_questions("train")
    asked = [(task, task, rows, sampling) for task, rows in train.items()]
    if _plays(context):
        one = dataclasses.replace(sampling, paths=1, early_stop=None)
        for task in train:
            given = [question for question, _ in worked_questions(context, task)]
            asked.append((f"strong-{task}", task, given, one))
    jobs = [
        make_job(name, rows, read_exemplars(context, task), "cot", how)
        for name, task, rows, how in asked
    ]
    draw_paths(
        context,
        jobs,
        {question.uid: question for _, _, rows, _ in asked for question in rows},
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
    store = ShardStore(context.folder(round_index, "sample"))
    paths: Paths = {}
    for task in context.load_questions("train"):
        paths |= read_paths(store, task)
    return paths
