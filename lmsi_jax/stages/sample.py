"""Sampling: questions -> paths, in shards that several processes share."""

from lmsi_jax.decoding.generate import read_paths
from lmsi_jax.records import Path
from lmsi_jax.stages.context import Context, named
from lmsi_jax.stages.paths import draw_paths, make_job
from lmsi_jax.stages.questions import read_exemplars
from lmsi_jax.store import ShardStore

Paths = dict[str, list[Path]]


def sample(context: Context, round_index: int, inputs: dict[str, str]) -> str:
    """Samples the train questions' paths with the model of the round before.

    Returns:
      The stage's fingerprint.
    """
    stage = context.stage(
        round_index,
        "sample",
        {**named(context.run.sampling), **context.decoding_settings},
        inputs,
    )
    if context.done(stage):
        return stage.fingerprint
    with context.processes.together("sample", round_index):
        sample_shards(context, round_index)
    stage.finish()
    return stage.fingerprint


def sample_shards(context: Context, round_index: int) -> None:
    """Samples this process' shards of a round."""
    questions = context.load_questions("train")
    jobs = [
        make_job(task, rows, read_exemplars(context, task), "cot", context.run.sampling)
        for task, rows in questions.items()
    ]
    draw_paths(
        context,
        jobs,
        {question.uid: question for rows in questions.values() for question in rows},
        context.folder(round_index, "sample"),
        model=round_index - 1,
        round_index=round_index,
        label=f"round {round_index}: sampling",
    )


def read_round(context: Context, round_index: int) -> Paths:
    """Reads all paths of a round by question uid."""
    store = ShardStore(context.folder(round_index, "sample"))
    paths: Paths = {}
    for task in context.load_questions("train"):
        paths |= read_paths(store, task)
    return paths
