"""Mixing: votes and paths -> training examples in the four formats; strong ones where asked for.

Where paths were sampled with generated prompts, each stands in the few-shot formats behind the
prompt that it was sampled with. With `Training.preference` pairs take the examples' place.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lmsi_jax import mixing
from lmsi_jax.generation.exemplars import FewShot, prompt_of
from lmsi_jax.records import Example, ExamplePair, Exemplar, Path, Question, Vote
from lmsi_jax.run import Run
from lmsi_jax.stages.context import Context, named
from lmsi_jax.stages.generate import new_questions, training_questions
from lmsi_jax.stages.prompts import read_prompts
from lmsi_jax.stages.questions import read_exemplars, worked_questions
from lmsi_jax.stages.sample import read_given, read_task
from lmsi_jax.stages.vote import read_votes
from lmsi_jax.store import ShardStore

_Voted = tuple[Question, list[Path], Vote]


def mix(context: Context, round_index: int, inputs: dict[str, str]) -> str:
    """Writes a round's training examples or pairs; returns the stage's fingerprint."""
    stage = context.stage(round_index, "mix", _settings(context.run), inputs)
    if context.done(stage):
        return stage.fingerprint
    store = ShardStore(stage.directory)
    for task, voted in _voted(context, round_index).items():
        for name, rows in _shards(context, round_index, task, voted).items():
            store.write(f"{name}-{task}", [row.to_json() for row in rows])
    stage.finish()
    return stage.fingerprint


def _settings(run: Run) -> dict[str, Any]:
    """What the rows depend on, beside what the stages before depend on."""
    settings, preference = named(run.mixing), run.training.preference
    if run.generation.questions:
        settings["Generation"] = {"min_confidence": run.generation.min_confidence}
    if preference is not None:
        settings["Preference"] = {"form": preference.form}
        if preference.form == "scpo":
            settings["Preference"]["threshold"] = preference.threshold
    return settings


def _voted(context: Context, round_index: int) -> dict[str, list[_Voted]]:
    """Questions, paths and votes by task, without new questions whose vote is not sure enough."""
    votes, new = read_votes(context, round_index), new_questions(context, round_index)
    least = context.run.generation.min_confidence
    found = {}
    for task, questions in training_questions(context, round_index).items():
        uids, paths = {row.uid for row in new[task]}, read_task(context, round_index, task)
        found[task] = [
            (question, paths[question.uid], vote)
            for question, vote in zip(questions, votes[task], strict=True)
            if question.uid not in uids or vote.confidence >= least
        ]
    return found


def _shards(
    context: Context, round_index: int, task: str, voted: Sequence[_Voted]
) -> dict[str, Sequence[Example | ExamplePair]]:
    """A task's rows by where they come from."""
    exemplars = read_exemplars(context, task)
    if context.run.training.preference is not None:
        return {"pairs": _pairs(context, round_index, task, voted, exemplars)}
    made = read_prompts(context, round_index, task)
    weak = _weak(context, voted, exemplars, made)
    if not context.run.mixing.strong_count:
        return {"weak": weak}
    return {"weak": weak, "strong": _strong(context, task, exemplars)}


def _pairs(
    context: Context,
    round_index: int,
    task: str,
    voted: Sequence[_Voted],
    exemplars: Sequence[Exemplar],
) -> list[ExamplePair]:
    """A task's pairs: from its votes, or of given solutions and the model's own paths."""
    formats, preference = context.run.mixing.formats, context.run.training.preference
    assert preference is not None
    if preference.form == "scpo":
        threshold = preference.threshold
        found = [
            mixing.vote_pairs(*one, exemplars, formats=formats, threshold=threshold)
            for one in voted
        ]
    else:
        own = read_given(context, round_index, task)
        found = [
            mixing.given_pairs(question, worked, own[question.uid][0], exemplars, formats)
            for question, worked in worked_questions(context, task)
        ]
    return [row for rows in found for row in rows]


def _weak(
    context: Context,
    voted: Sequence[_Voted],
    exemplars: Sequence[Exemplar],
    made: Sequence[FewShot],
) -> list[Example]:
    """The kept paths of a task's questions, each behind the prompt that it was sampled with."""
    switches = dataclasses.asdict(context.run.mixing)
    del switches["strong_count"]
    return [
        example
        for question, paths, vote in voted
        for example in mixing.examples(
            question, paths, vote, exemplars, own=_own(made, paths), **switches
        )
    ]


def _own(made: Sequence[FewShot], paths: Sequence[Path]) -> dict[int, tuple[Exemplar, ...]]:
    """The exemplars of each path's own prompt, by the path's index; {} without such prompts."""
    if not made:
        return {}
    return {path.index: made[prompt_of(path.uid, path.index, made)].exemplars for path in paths}


def _strong(context: Context, task: str, exemplars: Sequence[Exemplar]) -> list[Example]:
    """Worked, labelled questions: the human examples of a strong and weak mixture."""
    formats = context.run.mixing.formats
    return [
        example
        for question, worked in worked_questions(context, task)
        for example in mixing.strong_examples(question, worked, exemplars, formats)
    ]


def read_examples(context: Context, round_index: int) -> dict[str, list[Example]]:
    """Reads a round's examples by source, "weak" and "strong"."""
    store = ShardStore(context.folder(round_index, "mix"))
    by_source: dict[str, list[Example]] = {"weak": [], "strong": []}
    for name in store.names():
        if (source := name.split("-")[0]) in by_source:
            by_source[source] += [Example.from_json(row) for row in store.read(name)]
    return by_source


def read_pairs(context: Context, round_index: int) -> list[ExamplePair]:
    """Reads a round's pairs; none where it has examples."""
    store = ShardStore(context.folder(round_index, "mix"))
    names = [name for name in store.names() if name.startswith("pairs-")]
    return [ExamplePair.from_json(row) for name in names for row in store.read(name)]
