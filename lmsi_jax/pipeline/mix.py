"""Mixing: votes and paths -> training examples in the four formats; human ones where asked for.

Where paths were sampled with generated prompts, each stands in the few-shot formats behind the
prompt that it was sampled with. With `Training.preference` pairs take the examples' place.

What became of a round's paths between vote and training: what is stored, and for the report.

The mix stage writes down what its filters left. The report does the same again, so that right and
wrong rows can be counted with the answers of training questions, which that stage has not.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lmsi_jax import mixing, pairing
from lmsi_jax.augmentation import FewShot, prompt_of
from lmsi_jax.config import Run
from lmsi_jax.pipeline.augment import read_prompts
from lmsi_jax.pipeline.context import Context, settings_record
from lmsi_jax.pipeline.questions import read_exemplars, train_answers, worked_questions
from lmsi_jax.pipeline.sample import read_given
from lmsi_jax.pipeline.score import read_scored_rows
from lmsi_jax.pipeline.vote import Voted, read_voted
from lmsi_jax.records import Example, ExamplePair, Exemplar
from lmsi_jax.runtime.store import ShardStore
from lmsi_jax.selection.rows import Answers, Row, Selection, Step, right_and_wrong, select


def mix(context: Context, round_index: int, inputs: dict[str, str]) -> str:
    """Writes a round's training examples or pairs; returns the stage's fingerprint."""
    stage = context.stage(round_index, "mix", _settings(context.run_in(round_index)), inputs)
    if context.done(stage):
        return stage.fingerprint
    store = ShardStore(stage.directory)
    for task, voted in read_voted(context, round_index).items():
        for name, rows in _shards(context, round_index, task, voted).items():
            store.write(f"{name}-{task}", [row.to_json() for row in rows])
    stage.finish()
    return stage.fingerprint


def _settings(run: Run) -> dict[str, Any]:
    """What the rows depend on, beside what the stages before depend on."""
    own, preference = dataclasses.asdict(run.mixing), run.training.preference
    if run.mixing.selection:
        own["selection"] = [settings_record(one) for one in run.mixing.selection]
    else:
        del own["selection"]
    settings: dict[str, Any] = {"Mixing": own}
    if run.augmentation.questions:
        settings["Augmentation"] = {"min_confidence": run.augmentation.min_confidence}
    if preference is not None:
        settings["Preference"] = {"form": preference.form}
        if preference.form == "scpo":
            settings["Preference"]["threshold"] = preference.threshold
    return settings


def _shards(
    context: Context, round_index: int, task: str, voted: Sequence[Voted]
) -> dict[str, Sequence[Example | ExamplePair | Step]]:
    """A task's rows by where they come from, and what filters left."""
    exemplars = read_exemplars(context, task)
    if context.run.training.preference is not None:
        return {"pairs": _pairs(context, round_index, task, voted, exemplars)}
    rows, facts = read_scored_rows(context, round_index, task, voted)
    chosen = select(rows, context.run_in(round_index).mixing.filters, facts)
    made = read_prompts(context, round_index, task)
    shards: dict[str, Sequence[Example | ExamplePair | Step]] = {
        "self_generated": _self_generated(context, chosen, exemplars, made)
    }
    if chosen.steps:
        shards["funnel"] = chosen.steps
    if context.run.mixing.human_examples:
        shards["human"] = _human(context, task, exemplars)
    return shards


def _pairs(
    context: Context,
    round_index: int,
    task: str,
    voted: Sequence[Voted],
    exemplars: Sequence[Exemplar],
) -> list[ExamplePair]:
    """A task's pairs: from its votes, or of given solutions and the model's own paths."""
    run = context.run_in(round_index)
    formats, preference = run.mixing.formats, run.training.preference
    assert preference is not None
    if preference.form == "scpo":
        threshold = preference.threshold
        found = [
            pairing.vote_pairs(*one, exemplars, formats=formats, threshold=threshold)
            for one in voted
        ]
    else:
        own = read_given(context, round_index, task)
        found = [
            pairing.given_pairs(question, worked, own[question.uid][0], exemplars, formats)
            for question, worked in worked_questions(context, task)
        ]
    return [row for rows in found for row in rows]


def _self_generated(
    context: Context, chosen: Selection, exemplars: Sequence[Exemplar], made: Sequence[FewShot]
) -> list[Example]:
    """The chosen paths of a task's questions, each behind the prompt that it was sampled with."""
    by_question: dict[str, list[tuple[Row, float]]] = {}
    for row, weight in zip(chosen.rows, chosen.weights, strict=True):
        by_question.setdefault(row.question.uid, []).append((row, weight))
    switches = context.run.mixing
    return [
        example
        for rows in by_question.values()
        for example in mixing.examples(
            rows[0][0].question,
            rows,
            exemplars,
            own=_own(made, rows),
            formats=switches.formats,
            keep=switches.keep,
            merge_equal=switches.merge_equal,
            normalise=switches.normalise,
        )
    ]


def _own(
    made: Sequence[FewShot], rows: Sequence[tuple[Row, float]]
) -> dict[int, tuple[Exemplar, ...]]:
    """The exemplars of each path's own prompt, by the path's index; {} without such prompts."""
    if not made:
        return {}
    samples = [row.sample for row, _ in rows]
    return {
        sample.sample_index: made[prompt_of(sample.uid, sample.sample_index, made)].exemplars
        for sample in samples
    }


def _human(context: Context, task: str, exemplars: Sequence[Exemplar]) -> list[Example]:
    """Writes worked, labelled questions: the human examples of a mixture."""
    formats = context.run.mixing.formats
    return [
        example
        for question, worked in worked_questions(context, task)
        for example in mixing.human_solution_examples(question, worked, exemplars, formats)
    ]


def read_examples(context: Context, round_index: int) -> dict[str, list[Example]]:
    """Reads a round's examples by source, "self_generated" and "human"."""
    store = ShardStore(context.folder(round_index, "mix"))
    by_source: dict[str, list[Example]] = {"self_generated": [], "human": []}
    for name in store.names():
        if (source := name.split("-")[0]) in by_source:
            by_source[source] += [Example.from_json(row) for row in store.read(name)]
    return by_source


def read_pairs(context: Context, round_index: int) -> list[ExamplePair]:
    """Reads a round's pairs; none where it has examples."""
    store = ShardStore(context.folder(round_index, "mix"))
    names = [name for name in store.names() if name.startswith("pairs-")]
    return [ExamplePair.from_json(row) for name in names for row in store.read(name)]


def read_funnel(context: Context, round_index: int) -> dict[str, list[Step]]:
    """Returns what each filter of a round left, in their order, by task; {} without filters."""
    store = ShardStore(context.folder(round_index, "mix"))
    names = [name for name in store.names() if name.startswith("funnel-")]
    return {
        name.removeprefix("funnel-"): [Step(**row) for row in store.read(name)] for name in names
    }


def labelled_funnel(context: Context, round_index: int) -> list[dict[str, Any]]:
    """Returns what the vote and each filter left of each task's paths, with right and wrong rows.

    Where filters do not leave today what they left then (a filter of one's own was changed since),
    it is what they left then, without right and wrong.
    """
    run, stored = context.run_in(round_index), read_funnel(context, round_index)
    filters = run.mixing.filters if run.training.preference is None else ()
    steps = []
    for task, voted in read_voted(context, round_index).items():
        rows, facts = read_scored_rows(context, round_index, task, voted)
        answers = train_answers(context, task)
        own = list(select(rows, filters, facts, answers).steps)
        if list(map(_unlabelled, own)) != stored.get(task, []):
            own = stored.get(task, [])
        steps += [{"task": task, **step.to_json()} for step in (_vote(voted, rows, answers), *own)]
    return steps


def _unlabelled(step: Step) -> Step:
    """As the mix stage has written it."""
    return dataclasses.replace(step, right=0, wrong=0)


def _vote(voted: Sequence[Voted], rows: Sequence[Row], answers: Answers) -> Step:
    """The step from all paths to those that training may learn."""
    paths = sum(len(own) for _, own, _ in voted)
    parsed = sum(vote.parsed for _, _, vote in voted)
    dropped = {"another answer": parsed - len(rows), "no answer": paths - parsed}
    right, wrong = right_and_wrong(rows, answers)
    return Step(
        filter="Vote",
        rows=paths,
        kept=len(rows),
        questions=len({row.question.uid for row in rows}),
        weight=float(len(rows)),
        dropped={why: n for why, n in dropped.items() if n},
        right=right,
        wrong=wrong,
    )
