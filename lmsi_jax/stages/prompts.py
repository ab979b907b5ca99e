"""Prompt generation: greedy zero-shot answers -> few-shot prompts, in shards as sampling has them.

round_R/prompts/zero-shot-TASK-00000-of-00002    the answers
                prompts-TASK, counts-TASK        the prompts, and how many answers were usable
"""

import dataclasses
from typing import Any

from lmsi_jax.decoding.generate import Job, read_paths
from lmsi_jax.errors import LmsiError
from lmsi_jax.generation.exemplars import FewShot, asked, exemplar, few_shots
from lmsi_jax.records import Exemplar, Question
from lmsi_jax.stages.context import Context
from lmsi_jax.stages.generate import Counts, training_questions
from lmsi_jax.stages.paths import draw_paths, make_job
from lmsi_jax.store import ShardStore

_TRIES = 2  # questions asked for each exemplar that is wanted: some answers are not usable


def make_prompts(context: Context, round_index: int, inputs: dict[str, str]) -> str:
    """Writes a round's few-shot prompts; returns the stage's fingerprint.

    Raises:
      LmsiError: too few answers of a task are usable for two prompts.
    """
    run = context.run
    config = {
        "Generation": {"prompts": run.generation.prompts, "shots": run.generation.shots},
        "Sampling": {"max_new_tokens": run.sampling.max_new_tokens, "stop": run.sampling.stop},
        **context.decoding_settings,
    }
    stage = context.stage(round_index, "prompts", config, inputs)
    if context.done(stage):
        return stage.fingerprint
    with context.processes.together("prompts", round_index):
        prompt_shards(context, round_index)
    store = ShardStore(stage.directory)
    for task, questions in training_questions(context, round_index).items():
        made, counts = _made(context, round_index, task, questions)
        store.write(f"prompts-{task}", [_row(prompt) for prompt in made])
        store.write(f"counts-{task}", [counts])
    stage.finish()
    return stage.fingerprint


def prompt_shards(context: Context, round_index: int) -> None:
    """Samples this process' shards of the zero-shot answers."""
    by_task = training_questions(context, round_index)
    draw_paths(
        context,
        [_job(context, round_index, task, questions) for task, questions in by_task.items()],
        {question.uid: question for rows in by_task.values() for question in rows},
        context.folder(round_index, "prompts"),
        model=round_index - 1,
        round_index=round_index,
        label=f"round {round_index}: prompts",
    )


def read_prompts(context: Context, round_index: int, task: str) -> tuple[FewShot, ...]:
    """Reads a task's generated prompts; () where the run uses the task's own exemplars."""
    if not context.run.generation.prompts:
        return ()
    store = ShardStore(context.folder(round_index, "prompts"))
    return tuple(
        FewShot(
            uids=tuple(row["uids"]),
            exemplars=tuple(Exemplar.from_json(one) for one in row["exemplars"]),
        )
        for row in store.read(f"prompts-{task}")
    )


def _asked(
    context: Context, round_index: int, task: str, questions: list[Question]
) -> list[Question]:
    settings = context.run.generation
    by_uid = {question.uid: question for question in questions}
    place = (context.run.seed, round_index, task)
    uids = asked(list(by_uid), _TRIES * settings.prompts * settings.shots, place)
    return [by_uid[uid] for uid in uids]


def _job(context: Context, round_index: int, task: str, questions: list[Question]) -> Job:
    some = _asked(context, round_index, task, questions)
    greedy = dataclasses.replace(
        context.run.sampling, paths=1, temperature=0.0, early_stop=None, token_logprobs=False
    )
    return make_job(f"zero-shot-{task}", some, (), "zero_shot_cot", greedy)


def _made(
    context: Context, round_index: int, task: str, questions: list[Question]
) -> tuple[tuple[FewShot, ...], Counts]:
    settings = context.run.generation
    paths = read_paths(
        ShardStore(context.folder(round_index, "prompts")),
        f"zero-shot-{task}",
    )
    some = _asked(context, round_index, task, questions)
    found = [(row.uid, exemplar(row, paths[row.uid][0])) for row in some]
    worked = [(uid, one) for uid, one in found if one is not None]
    made = few_shots(worked, settings.prompts, settings.shots)
    if len(made) < 2:
        raise LmsiError(
            f"round {round_index}: {len(worked)} of {len(some)} zero-shot answers of {task!r} can "
            f"be exemplars, two prompts need {2 * settings.shots}; lower Generation.shots, raise "
            "Questions.train_count, or set Generation.prompts to 0"
        )
    return made, {"asked": len(some), "usable": len(worked), "prompts": len(made)}


def _row(prompt: FewShot) -> dict[str, Any]:
    exemplars = [one.to_json() for one in prompt.exemplars]
    return {"uids": list(prompt.uids), "exemplars": exemplars}
