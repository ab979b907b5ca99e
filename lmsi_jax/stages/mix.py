"""Mixing: votes and paths -> training examples in the four formats; strong ones where asked for.

Where paths were sampled with generated prompts, each stands in the few-shot formats behind the
prompt that it was sampled with.
"""

import dataclasses
from collections.abc import Sequence

from lmsi_jax import mixing
from lmsi_jax.generation.exemplars import FewShot, prompt_of
from lmsi_jax.records import Example, Exemplar, Path, Question
from lmsi_jax.stages.context import Context, named
from lmsi_jax.stages.generate import new_questions, training_questions
from lmsi_jax.stages.prompts import read_prompts
from lmsi_jax.stages.questions import read_exemplars
from lmsi_jax.stages.sample import read_task
from lmsi_jax.stages.vote import read_votes
from lmsi_jax.store import ShardStore


def mix(context: Context, round_index: int, inputs: dict[str, str]) -> str:
    """Writes a round's training examples; returns the stage's fingerprint."""
    config, generation = context.run.mixing, context.run.generation
    own = {"min_confidence": generation.min_confidence}
    settings = {**named(config), **({"Generation": own} if generation.questions else {})}
    stage = context.stage(round_index, "mix", settings, inputs)
    if context.done(stage):
        return stage.fingerprint
    switches = dataclasses.asdict(config)
    strong_count = switches.pop("strong_count")
    sure = switches.pop("min_confidence")
    surer = max(sure, generation.min_confidence)
    store = ShardStore(stage.directory)
    votes = read_votes(context, round_index)
    new = {row.uid for rows in new_questions(context, round_index).values() for row in rows}
    for task, questions in training_questions(context, round_index).items():
        exemplars = read_exemplars(context, task)
        made = read_prompts(context, round_index, task)
        paths = read_task(context, round_index, task)
        rows = [
            example
            for question, vote in zip(questions, votes[task], strict=True)
            for example in mixing.examples(
                question,
                paths[question.uid],
                vote,
                exemplars,
                own=_own(made, paths[question.uid]),
                min_confidence=surer if question.uid in new else sure,
                **switches,
            )
        ]
        store.write(f"weak-{task}", [row.to_json() for row in rows])
        if strong_count:
            strong = _strong(context, task, strong_count)
            store.write(f"strong-{task}", [row.to_json() for row in strong])
    stage.finish()
    return stage.fingerprint


def _own(made: Sequence[FewShot], paths: Sequence[Path]) -> dict[int, tuple[Exemplar, ...]]:
    """The exemplars of each path's own prompt, by the path's index; {} without such prompts."""
    if not made:
        return {}
    return {path.index: made[prompt_of(path.uid, path.index, made)].exemplars for path in paths}


def _strong(context: Context, task: str, count: int) -> list[Example]:
    """Worked, labelled questions: the human examples of a strong and weak mixture."""
    from lmsi_jax.tasks import registry

    config = context.questions
    source = registry.get(task, config.folder(task))
    exemplars = read_exemplars(context, task)
    rows = source.worked("pretrain", config.level, config.seed)
    examples = []
    for number in range(count):
        worked = next(rows)
        question = Question(
            uid=f"strong-{task}-{number}", task=task, text=worked.question, kind=source.kind
        )
        formats = context.run.mixing.formats
        examples += mixing.strong_examples(question, worked, exemplars, formats)
    return examples


def read_examples(context: Context, round_index: int) -> dict[str, list[Example]]:
    """Reads a round's examples by source, "weak" and "strong"."""
    store = ShardStore(context.folder(round_index, "mix"))
    by_source: dict[str, list[Example]] = {"weak": [], "strong": []}
    for name in store.names():
        by_source[name.split("-")[0]] += [Example.from_json(row) for row in store.read(name)]
    return by_source
