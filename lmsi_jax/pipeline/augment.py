"""Question generation: real questions -> the model's own, in shards that several processes share.

round_R/generate/written-TASK-00000-of-00002    what the model wrote behind lists of questions
                 questions-TASK, counts-TASK    the new questions, and what became of the rest

Prompt generation: greedy zero-shot answers -> few-shot prompts, in shards as sampling has them.

round_R/prompts/zero-shot-TASK-00000-of-00002    the answers
                prompts-TASK, counts-TASK        the prompts, and how many answers were usable
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lmsi_jax import augmentation as generation
from lmsi_jax.augmentation import FewShot, choose_asked, exemplar, few_shots
from lmsi_jax.config import Sampling
from lmsi_jax.errors import LmsiError
from lmsi_jax.pipeline.context import Context
from lmsi_jax.pipeline.questions import contaminated_questions
from lmsi_jax.pipeline.sample_shards import Job, draw_samples, make_job, read_samples
from lmsi_jax.prompts import QUESTION_STOPS, question_list
from lmsi_jax.records import Exemplar, Question, Sample
from lmsi_jax.runtime.store import ShardStore

_LATER = ("min_confidence", "prompts", "shots")  # settings that other stages read
Counts = dict[str, int]


def generate(context: Context, round_index: int, inputs: dict[str, str]) -> str:
    """Writes a round's new questions; returns the stage's fingerprint.

    Raises:
      LmsiError: a task has none, and its real ones are not used.
    """
    own = dataclasses.asdict(context.run.augmentation)
    for name in _LATER:
        del own[name]
    config = {"Augmentation": own, **context.decoding_settings}
    stage = context.stage(round_index, "generate", config, inputs)
    if context.done(stage):
        return stage.fingerprint
    with context.processes.together("generate", round_index):
        generate_shards(context, round_index)
    store = ShardStore(stage.directory)
    for task, real in context.load_questions("train").items():
        new, counts = _sift(context, real, read_samples(store, f"written-{task}"))
        if not new and own["use"] == "instead":
            raise LmsiError(
                f"round {round_index}: none of {counts['written']} texts is a new question of "
                f"{task!r} ({counts['malformed']} malformed); set Augmentation.use to 'beside', or "
                "raise Augmentation.tries"
            )
        store.write(f"questions-{task}", [row.to_json() for row in new])
        store.write(f"counts-{task}", [counts])
    stage.finish()
    return stage.fingerprint


def generate_shards(context: Context, round_index: int) -> None:
    """Samples this process' shards of what the model writes."""
    draw_samples(
        context,
        [
            _job(context, round_index, task, real)
            for task, real in context.load_questions("train").items()
        ],
        {},
        context.folder(round_index, "generate"),
        model=round_index - 1,
        round_index=round_index,
        label=f"round {round_index}: new questions",
    )


def training_questions(context: Context, round_index: int) -> dict[str, list[Question]]:
    """Returns the questions that a round samples, by task: the real ones, the new ones, or both."""
    real = context.load_questions("train")
    if not context.run.augmentation.questions:
        return real
    new = new_questions(context, round_index)
    if context.run.augmentation.use == "instead":
        return new
    return {task: [*rows, *new[task]] for task, rows in real.items()}


def new_questions(context: Context, round_index: int) -> dict[str, list[Question]]:
    """Reads a round's new questions by task; empty lists where none were asked for."""
    tasks = dict.fromkeys(context.questions.train)
    if not context.run.augmentation.questions:
        return {task: [] for task in tasks}
    store = ShardStore(context.folder(round_index, "generate"))
    return {
        task: [Question.from_json(row) for row in store.read(f"questions-{task}")] for task in tasks
    }


def read_counts(
    context: Context, round_index: int, stage: Literal["generate", "prompts"]
) -> dict[str, Counts]:
    """Reads what became of all that the model wrote in a stage, by task.

    {} where none was asked for.
    """
    asked = context.run.augmentation
    if not {"generate": asked.questions, "prompts": asked.prompts}[stage]:
        return {}
    store = ShardStore(context.folder(round_index, stage))
    tasks = dict.fromkeys(context.questions.train)
    return {task: store.read(f"counts-{task}")[0] for task in tasks}


def _job(context: Context, round_index: int, task: str, real: list[Question]) -> Job:
    """Lists of a task's real questions, each to be continued several times."""
    settings, seed = context.run.augmentation, context.run.seed
    lists = math.ceil(settings.questions * settings.tries / settings.continuations)
    texts = [question.text for question in real]
    begins = _opening(context, texts)
    prompts = {
        f"{task}-list-{number:05d}": question_list(
            generation.choose_shown(texts, settings.shown, (seed, round_index, task, number)),
            begins,
        )
        for number in range(lists)
    }
    sampling = Sampling(
        num_samples=settings.continuations,
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        stop=QUESTION_STOPS,
    )
    return Job(name=f"written-{task}", prefix="", questions=prompts, sampling=sampling)


def _opening(context: Context, texts: Sequence[str]) -> str:
    """How each new question begins in the prompt; "" where the model writes that itself."""
    return generation.opening(texts) if context.run.augmentation.opening else ""


def _sift(
    context: Context, real: list[Question], written: Mapping[str, list[Sample]]
) -> tuple[list[Question], Counts]:
    """Keeps well-formed questions that stand neither in the run's questions nor twice."""
    from lmsi_jax.tasks import contamination, registry

    task = registry.get(real[0].task)
    known = {row.uid: row.text for row in real}
    shape, begins = generation.Shape.of([*known.values()]), _opening(context, [*known.values()])
    samples = [sample for uid in sorted(written) for sample in written[uid]]
    parsed = [generation.parse(sample.text, sample.finished, shape, begins) for sample in samples]
    formed = [text for text in parsed if text is not None]
    rows = [generation.question(task.name, task.kind, text) for text in dict.fromkeys(formed)]
    texts = {row.uid: row.text for row in rows}
    seen = {
        one.uid
        for one in contamination.find_contaminated(
            texts, known, task.contamination_ngram, task.content
        )
    }
    tested = contaminated_questions(context, task.name, texts).keys() - seen
    fresh = {uid: text for uid, text in texts.items() if uid not in seen | tested}
    distinct = contamination.deduplicate(fresh, task.contamination_ngram, task.content)
    kept = set(distinct[: context.run.augmentation.questions])
    counts = {
        "written": len(parsed),
        "malformed": len(parsed) - len(formed),
        "duplicates": len(formed) - len(tested) - len(distinct),
        "contaminated": len(tested),
        "surplus": len(distinct) - len(kept),
        "new": len(kept),
    }
    return [row for row in rows if row.uid in kept], counts


_TRIES = 2  # questions asked for each exemplar that is wanted: some answers are not usable


def make_prompts(context: Context, round_index: int, inputs: dict[str, str]) -> str:
    """Writes a round's few-shot prompts; returns the stage's fingerprint.

    Raises:
      LmsiError: too few answers of a task are usable for two prompts.
    """
    run = context.run
    config = {
        "Augmentation": {"prompts": run.augmentation.prompts, "shots": run.augmentation.shots},
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
    draw_samples(
        context,
        [
            _job_prompts(context, round_index, task, questions)
            for task, questions in by_task.items()
        ],
        {question.uid: question for rows in by_task.values() for question in rows},
        context.folder(round_index, "prompts"),
        model=round_index - 1,
        round_index=round_index,
        label=f"round {round_index}: prompts",
    )


def read_prompts(context: Context, round_index: int, task: str) -> tuple[FewShot, ...]:
    """Reads a task's generated prompts; () where the run uses the task's own exemplars."""
    if not context.run.augmentation.prompts:
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
    settings = context.run.augmentation
    by_uid = {question.uid: question for question in questions}
    place = (context.run.seed, round_index, task)
    uids = choose_asked(list(by_uid), _TRIES * settings.prompts * settings.shots, place)
    return [by_uid[uid] for uid in uids]


def _job_prompts(context: Context, round_index: int, task: str, questions: list[Question]) -> Job:
    some = _asked(context, round_index, task, questions)
    greedy = dataclasses.replace(
        context.run.sampling,
        num_samples=1,
        temperature=0.0,
        adaptive_consistency=None,
        token_logprobs=False,
    )
    return make_job(f"zero-shot-{task}", some, (), "zero_shot_cot", greedy)


def _made(
    context: Context, round_index: int, task: str, questions: list[Question]
) -> tuple[tuple[FewShot, ...], Counts]:
    settings = context.run.augmentation
    samples = read_samples(
        ShardStore(context.folder(round_index, "prompts")),
        f"zero-shot-{task}",
    )
    some = _asked(context, round_index, task, questions)
    found = [(row.uid, exemplar(row, samples[row.uid][0])) for row in some]
    worked = [(uid, one) for uid, one in found if one is not None]
    made = few_shots(worked, settings.prompts, settings.shots)
    if len(made) < 2:
        raise LmsiError(
            f"round {round_index}: {len(worked)} of {len(some)} zero-shot answers of {task!r} can "
            f"be exemplars, two prompts need {2 * settings.shots}; lower Augmentation.shots, raise "
            "Questions.train_count, or set Augmentation.prompts to 0"
        )
    return made, {"asked": len(some), "usable": len(worked), "prompts": len(made)}


def _row(prompt: FewShot) -> dict[str, Any]:
    exemplars = [one.to_json() for one in prompt.exemplars]
    return {"uids": list(prompt.uids), "exemplars": exemplars}
