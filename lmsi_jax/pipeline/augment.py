"""New questions and new few-shot prompts, which the model makes itself before it is sampled.

round_R/generate/written-TASK-00000-of-00002     what the model wrote after lists of questions
                 questions-TASK, counts-TASK     the new questions, and what became of the rest
round_R/paraphrase/written-TASK-00000-of-00002, paraphrases-TASK, counts-TASK
round_R/prompts/zero-shot-TASK-00000-of-00002    greedy zero-shot answers
                prompts-TASK, counts-TASK        the prompts, and how many answers were usable
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lmsi_jax import augmentation
from lmsi_jax.augmentation import FewShot, choose_asked, exemplar, few_shots
from lmsi_jax.config import Sampling
from lmsi_jax.errors import LmsiError
from lmsi_jax.pipeline.context import Round, read_samples
from lmsi_jax.pipeline.questions import contaminated_questions
from lmsi_jax.pipeline.sample import Job, draw_samples, make_job
from lmsi_jax.pipeline.step import DECODING, Fields, Step, custom_code
from lmsi_jax.prompts import QUESTION_STOPS
from lmsi_jax.records import Question, Sample
from lmsi_jax.runtime.store import ShardStore

Counts = dict[str, int]


class GenerateStep(Step):
    """Has the model write new questions for the round.

    Raises:
      LmsiError: a task has none, and its real ones are not used.
    """

    name = "generate"
    settings = (
        Fields(
            part="augmentation",
            without=("min_confidence", "prompts", "shots", "paraphrase", "paraphrase_tries"),
        ),
        *DECODING,
    )
    inputs = ("model", "questions")
    writes_prompts = True

    def applies(self, round: Round) -> bool:
        return bool(round.settings.augmentation.questions)

    def share(self, round: Round) -> None:
        draw_samples(
            round,
            [
                _question_job(round, task, real)
                for task, real in round.context.load_questions("train").items()
            ],
            {},
            round.folder(self.name),
            model=round.index - 1,
            label=f"round {round.index}: new questions",
        )

    def write(self, round: Round, store: ShardStore) -> None:
        for task, real in round.context.load_questions("train").items():
            new, counts = _sift(round, real, read_samples(store, f"written-{task}"))
            if not new and round.settings.augmentation.use == "instead":
                raise LmsiError(
                    f"round {round.index}: none of {counts['written']} texts is a new question of "
                    f"{task!r} ({counts['malformed']} malformed); set Augmentation.use to "
                    "'beside', or raise Augmentation.tries"
                )
            store.write(f"questions-{task}", [row.to_json() for row in new])
            store.write(f"counts-{task}", [counts])


class ParaphraseStep(Step):
    """Has the model paraphrase the round's questions, for a vote on both phrasings."""

    name = "paraphrase"
    settings = (
        Fields(part="augmentation", names=("paraphrase_tries", "temperature", "max_new_tokens")),
        *DECODING,
    )
    inputs = ("model", "questions", "generate")
    writes_prompts = True

    def applies(self, round: Round) -> bool:
        return round.settings.augmentation.paraphrase != "none"

    def share(self, round: Round) -> None:
        settings, writer = round.settings.augmentation, round.context.prompts
        sampling = Sampling(
            num_samples=settings.paraphrase_tries,
            temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens,
            stop=QUESTION_STOPS,
        )
        jobs = [
            Job(
                name=f"written-{task}",
                prefix="",
                questions={
                    row.uid: writer.request(augmentation.paraphrase_request(row.text))
                    for row in rows
                },
                sampling=sampling,
            )
            for task, rows in round.questions.items()
        ]
        label = f"round {round.index}: paraphrases"
        folder = round.folder(self.name)
        draw_samples(round, jobs, {}, folder, model=round.index - 1, label=label)

    def write(self, round: Round, store: ShardStore) -> None:
        for task, rows in round.questions.items():
            written = read_samples(store, f"written-{task}")
            usable = []
            for question in rows:
                texts = (
                    augmentation.parse_paraphrase(sample.text, sample.finished, question.text)
                    for sample in written[question.uid]
                )
                if (text := next(filter(None, texts), None)) is not None:
                    usable.append(augmentation.paraphrased(question, text))
            store.write(f"paraphrases-{task}", [question.to_json() for question in usable])
            store.write(f"counts-{task}", [{"asked": len(rows), "usable": len(usable)}])
            print(
                f"round {round.index}: {len(usable)} of {len(rows)} questions of {task} have a "
                "usable paraphrase",
                flush=True,
            )


def read_counts(round: Round, stage: Literal["generate", "prompts"]) -> dict[str, Counts]:
    """Reads what became of all that the model wrote in a stage, by task; {} without that stage."""
    settings = round.settings.augmentation
    if not {"generate": settings.questions, "prompts": settings.prompts}[stage]:
        return {}
    store = round.store(stage)
    tasks = dict.fromkeys(round.context.questions.train)
    return {task: store.read(f"counts-{task}")[0] for task in tasks}


def _question_job(round: Round, task: str, real: list[Question]) -> Job:
    """Returns lists of a task's real questions, each to be continued several times."""
    settings, seed = round.settings.augmentation, round.settings.seed
    lists = math.ceil(settings.questions * settings.tries / settings.continuations)
    texts = [question.text for question in real]
    opening = _opening(round, texts)
    prompts = {
        f"{task}-list-{number:05d}": round.context.prompts.more_questions(
            augmentation.choose_shown(texts, settings.shown, (seed, round.index, task, number)),
            opening,
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


def _opening(round: Round, texts: Sequence[str]) -> str:
    """Returns how each new question begins in the prompt; "" if the model writes that too."""
    return augmentation.opening(texts) if round.settings.augmentation.opening else ""


def _sift(
    round: Round, real: list[Question], written: Mapping[str, list[Sample]]
) -> tuple[list[Question], Counts]:
    """Keeps well-formed questions that neither the run's questions nor earlier new ones repeat."""
    from lmsi_jax.tasks import contamination, registry

    task = registry.find(round.context.questions, real[0].task)
    known = {row.uid: row.text for row in real}
    texts = [*known.values()]
    shape, opening = augmentation.Shape.of(texts), _opening(round, texts)
    samples = [sample for uid in sorted(written) for sample in written[uid]]
    parsed = [
        augmentation.parse(sample.text, sample.finished, shape, opening) for sample in samples
    ]
    formed = [text for text in parsed if text is not None]
    rows = [augmentation.question(task.name, task.kind, text) for text in dict.fromkeys(formed)]
    new = {row.uid: row.text for row in rows}
    words, content = task.contamination_ngram, task.content
    seen = {one.uid for one in contamination.find_contaminated(new, known, words, content)}
    tested = contaminated_questions(round.context, task.name, new).keys() - seen
    fresh = {uid: text for uid, text in new.items() if uid not in seen | tested}
    distinct = contamination.deduplicate(fresh, words, content)
    kept = set(distinct[: round.settings.augmentation.questions])
    counts = {
        "written": len(parsed),
        "malformed": len(parsed) - len(formed),
        "duplicates": len(formed) - len(tested) - len(distinct),
        "contaminated": len(tested),
        "surplus": len(distinct) - len(kept),
        "new": len(kept),
    }
    return [row for row in rows if row.uid in kept], counts


_TRIES = 2  # questions asked for each exemplar: some answers are not usable


class PromptsStep(Step):
    """Makes few-shot prompts of the model's zero-shot answers.

    Raises:
      LmsiError: too few answers of a task are usable for two prompts.
    """

    name = "prompts"
    settings = (
        Fields(part="augmentation", names=("prompts", "shots")),
        Fields(part="sampling", names=("max_new_tokens", "stop")),
        *DECODING,
    )
    inputs = ("model", "questions", "generate")
    writes_prompts = True

    def derived(self, round: Round) -> dict[str, Any]:
        return custom_code(round, "read", "equal", "prompt")

    def applies(self, round: Round) -> bool:
        return bool(round.settings.augmentation.prompts)

    def share(self, round: Round) -> None:
        by_task = round.questions
        draw_samples(
            round,
            [_zero_shot_job(round, task, questions) for task, questions in by_task.items()],
            {question.uid: question for rows in by_task.values() for question in rows},
            round.folder(self.name),
            model=round.index - 1,
            label=f"round {round.index}: prompts",
        )

    def write(self, round: Round, store: ShardStore) -> None:
        for task, questions in round.questions.items():
            samples = read_samples(store, f"zero-shot-{task}")
            prompts, counts = _few_shots(round, task, questions, samples)
            rows = [
                {
                    "uids": list(prompt.uids),
                    "exemplars": [exemplar.to_json() for exemplar in prompt.exemplars],
                }
                for prompt in prompts
            ]
            store.write(f"prompts-{task}", rows)
            store.write(f"counts-{task}", [counts])


def _asked(round: Round, task: str, questions: list[Question]) -> list[Question]:
    settings = round.settings.augmentation
    by_uid = {question.uid: question for question in questions}
    place = (round.settings.seed, round.index, task)
    uids = choose_asked(list(by_uid), _TRIES * settings.prompts * settings.shots, place)
    return [by_uid[uid] for uid in uids]


def _zero_shot_job(round: Round, task: str, questions: list[Question]) -> Job:
    greedy = dataclasses.replace(
        round.settings.sampling,
        num_samples=1,
        temperature=0.0,
        adaptive_consistency=None,
        token_logprobs=False,
    )
    return make_job(
        round.context.prompts,
        f"zero-shot-{task}",
        _asked(round, task, questions),
        (),
        "zero_shot_cot",
        greedy,
    )


def _few_shots(
    round: Round, task: str, questions: list[Question], samples: Mapping[str, list[Sample]]
) -> tuple[tuple[FewShot, ...], Counts]:
    settings, asked = round.settings.augmentation, _asked(round, task, questions)
    worked = []
    for question in asked:
        (sample,) = samples[question.uid]
        (reading,) = round.reader.read(question, [sample])
        if (row := exemplar(question, sample, reading)) is not None:
            worked.append((question.uid, row))
    prompts = few_shots(worked, settings.prompts, settings.shots)
    if len(prompts) < 2:
        raise LmsiError(
            f"round {round.index}: {len(worked)} of {len(asked)} zero-shot answers of {task!r} can "
            f"be exemplars, two prompts need {2 * settings.shots}; lower Augmentation.shots, raise "
            "Questions.train_count, or set Augmentation.prompts to 0"
        )
    return prompts, {"asked": len(asked), "usable": len(worked), "prompts": len(prompts)}
