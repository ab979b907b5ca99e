"""Mixing: votes and paths -> training examples in the four formats; strong ones where asked for.

With `Training.preference` pairs take their place.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lmsi_jax import mixing
from lmsi_jax.records import Example, ExamplePair, Exemplar, Path, Question, Vote
from lmsi_jax.run import Mixing
from lmsi_jax.selection.funnel import Selection, Step, select
from lmsi_jax.stages.context import Context, named
from lmsi_jax.stages.path_scores import read_scored_rows
from lmsi_jax.stages.questions import read_exemplars, worked_questions
from lmsi_jax.stages.sample import read_paths
from lmsi_jax.stages.vote import read_votes
from lmsi_jax.store import ShardStore
from lmsi_jax.training.preferences import Preference


def mix(context: Context, round_index: int, inputs: dict[str, str]) -> str:
    """Writes a round's training examples; returns the stage's fingerprint."""
    run = context.run
    settings = {**_settings(run.mixing), **_pair_settings(run.training.preference)}
    stage = context.stage(round_index, "mix", settings, inputs)
    if context.done(stage):
        return stage.fingerprint
    source = ShardStore(context.folder(round_index, "sample"))
    store = ShardStore(stage.directory)
    votes = read_votes(context, round_index)
    for task, questions in context.load_questions("train").items():
        exemplars = read_exemplars(context, task)
        paths = read_paths(source, task)
        asked = [
            (question, paths[question.uid], vote)
            for question, vote in zip(questions, votes[task], strict=True)
        ]
        for name, rows in _shards(context, round_index, task, asked, exemplars).items():
            store.write(f"{name}-{task}", [row.to_json() for row in rows])
    stage.finish()
    return stage.fingerprint


def _pair_settings(preference: Preference | None) -> dict[str, Any]:
    if preference is None:
        return {}
    own: dict[str, Any] = {"form": preference.form}
    if preference.form == "scpo":
        own["threshold"] = preference.threshold
    return {"Preference": own}


def _settings(mixing: Mixing) -> dict[str, Any]:
    """The configuration, each filter with its name."""
    own = dataclasses.asdict(mixing)
    return {"Mixing": own | {"selection": [named(one) for one in mixing.selection]}}


def _shards(
    context: Context,
    round_index: int,
    task: str,
    asked: Sequence[tuple[Question, list[Path], Vote]],
    exemplars: Sequence[Exemplar],
) -> dict[str, Sequence[Example | ExamplePair | Step]]:
    """A task's rows by where they come from."""
    run, preference = context.run, context.run.training.preference
    formats = run.mixing.formats
    if preference is None:
        shards: dict[str, Sequence[Example | ExamplePair | Step]] = {}
        weights = None
        if run.mixing.filters:
            chosen = _selected(context, round_index, task)
            weights, shards["funnel"] = _by_question(chosen), chosen.steps
        shards["weak"] = [
            row
            for question, paths, vote in asked
            for row in mixing.examples(
                question,
                paths,
                vote,
                exemplars,
                formats=formats,
                keep=run.mixing.keep,
                merge_equal=run.mixing.merge_equal,
                normalise=run.mixing.normalise,
                weights=None if weights is None else weights.get(question.uid, {}),
            )
        ]
        if run.mixing.strong_count:
            shards["strong"] = _strong(context, task, exemplars)
        return shards
    if preference.form == "scpo":
        threshold = preference.threshold
        found = [
            mixing.vote_pairs(*one, exemplars, formats=formats, threshold=threshold)
            for one in asked
        ]
    else:
        own = read_paths(ShardStore(context.folder(round_index, "sample")), f"strong-{task}")
        found = [
            mixing.given_pairs(question, worked, own[question.uid][0], exemplars, formats)
            for question, worked in worked_questions(context, task)
        ]
    return {"pairs": [row for rows in found for row in rows]}


def _selected(context: Context, round_index: int, task: str) -> Selection:
    """What the filters leave of a task's voted paths."""
    rows, facts = read_scored_rows(context, round_index, task)
    return select(rows, context.run.mixing.filters, facts)


def _by_question(chosen: Selection) -> dict[str, dict[int, float]]:
    """The weights that are left, by question and path index."""
    weights: dict[str, dict[int, float]] = {}
    for row, weight in zip(chosen.rows, chosen.weights, strict=True):
        weights.setdefault(row.question.uid, {})[row.path.index] = weight
    return weights


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


def read_funnel(context: Context, round_index: int) -> list[dict[str, Any]]:
    """Reads what each filter left of each task, in their order; [] where there was no filter."""
    store = ShardStore(context.folder(round_index, "mix"))
    names = [name for name in store.names() if name.startswith("funnel-")]
    return [
        {"task": name.removeprefix("funnel-"), **row} for name in names for row in store.read(name)
    ]


def read_pairs(context: Context, round_index: int) -> list[ExamplePair]:
    """Reads a round's pairs; none where it has examples."""
    store = ShardStore(context.folder(round_index, "mix"))
    names = [name for name in store.names() if name.startswith("pairs-")]
    return [ExamplePair.from_json(row) for name in names for row in store.read(name)]
