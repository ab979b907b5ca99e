"""Mixing: votes and samples -> training examples in the four formats, human ones if asked for.

In the few-shot formats a sample follows the generated prompt that it was drawn with, if any.
With `Training.preference` pairs take the examples' place.

The stage records what each filter kept. The report selects again to count right and wrong rows with
the answers of training questions, which this stage does not have; only the filter `GoldLabels`, an
upper bound, is given them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lmsi_jax import mixing, pairing
from lmsi_jax.augmentation import FewShot, prompt_of
from lmsi_jax.config.row_filters import BASE_SHARES
from lmsi_jax.pipeline.context import Round, Voted
from lmsi_jax.pipeline.questions import train_answers, worked_questions
from lmsi_jax.pipeline.sample import read_given
from lmsi_jax.pipeline.score import all_needs, has_new_questions, read_scored_rows
from lmsi_jax.pipeline.step import Fields, Step, custom_code
from lmsi_jax.records import Example, ExamplePair, Exemplar
from lmsi_jax.runtime.store import ShardStore
from lmsi_jax.selection.rows import Answers, FilterCounts, Row, Selection, right_and_wrong, select
from lmsi_jax.voting import read_answers

_Rows = Sequence[Example | ExamplePair | FilterCounts]


def _has_pairs(round: Round) -> bool:
    return round.settings.training.preference is not None


def _repeats_last_pairs(round: Round) -> bool:
    preference = round.settings.training.preference
    if preference is None or preference.form != "spin" or round.index < 2:
        return False
    return preference.last_pairs


def _pairs_votes(round: Round) -> bool:
    preference = round.settings.training.preference
    return preference is not None and preference.form == "scpo"


class MixStep(Step):
    """Writes the round's training examples or pairs."""

    name = "mix"
    settings = (
        Fields(part="mixing", without=("selection",)),
        Fields(
            part="mixing",
            names=("selection",),
            when=lambda round: bool(round.settings.mixing.selection),
        ),
        Fields(part="augmentation", names=("min_confidence",), when=has_new_questions),
        Fields(part="training.preference", names=("form",), when=_has_pairs),
        Fields(part="training.preference", names=("threshold",), when=_pairs_votes),
        Fields(part="training.preference", names=("last_pairs",), when=_repeats_last_pairs),
    )
    inputs = ("vote", "filter_scores")
    writes_prompts = True

    def derived(self, round: Round) -> dict[str, Any]:
        # With SPIN it reads the model's own samples itself.
        code = custom_code(round, "prompt", *(("read", "equal") if _has_pairs(round) else ()))
        if BASE_SHARES in all_needs(round) and round.index > 1:
            code["base_vote"] = round.context.round(1).stage_fingerprint("vote")
        return code

    def write(self, round: Round, store: ShardStore) -> None:
        for task, voted in round.voted().items():
            for name, rows in _shards(round, task, voted).items():
                store.write(f"{name}-{task}", [row.to_json() for row in rows])


def _shards(round: Round, task: str, voted: Sequence[Voted]) -> dict[str, _Rows]:
    """Returns a task's rows by source, and the funnel of its filters."""
    exemplars = round.context.exemplars(task)
    if _has_pairs(round):
        made: dict[str, _Rows] = {"pairs": _pairs(round, task, voted, exemplars)}
        if _repeats_last_pairs(round):
            last = round.context.round(round.index - 1).store("mix")
            made["last_pairs"] = [*map(ExamplePair.from_json, last.read(f"pairs-{task}"))]
        return made
    rows, facts = read_scored_rows(round, task, voted)
    selection = select(rows, round.settings.mixing.filters, facts)
    shards: dict[str, _Rows] = {
        "self_generated": _self_generated(round, selection, exemplars, round.few_shots(task))
    }
    if selection.steps:
        shards["funnel"] = selection.steps
    if round.settings.mixing.human_examples:
        shards["human"] = [
            example
            for question, worked in worked_questions(round, task)
            for example in mixing.human_solution_examples(
                question,
                worked,
                exemplars,
                round.settings.mixing.formats,
                round.context.prompts,
            )
        ]
    return shards


def _pairs(
    round: Round, task: str, voted: Sequence[Voted], exemplars: Sequence[Exemplar]
) -> list[ExamplePair]:
    """Returns a task's pairs: of its votes, or of human solutions and the model's own samples."""
    formats, preference = round.settings.mixing.formats, round.settings.training.preference
    writer = round.context.prompts
    assert preference is not None
    if preference.form == "scpo":
        threshold = preference.threshold
        return [
            pair
            for one in voted
            for pair in pairing.vote_pairs(
                *one, exemplars, formats=formats, threshold=threshold, writer=writer
            )
        ]
    given, pairs = read_given(round, task), []
    for question, worked in worked_questions(round, task):
        sample = given[question.uid][0]
        # No vote is taken, so `Voting.conclusions` does not matter.
        concludes = round.settings.voting.conclusions
        read = round.reader.read if concludes else read_answers
        (reading,) = read(question, [sample])
        pairs += pairing.given_pairs(question, worked, sample, reading, exemplars, formats, writer)
    return pairs


def _self_generated(
    round: Round, selection: Selection, exemplars: Sequence[Exemplar], prompts: Sequence[FewShot]
) -> list[Example]:
    """Returns the selected samples as examples, each after the prompt that it was drawn with."""
    by_question: dict[str, list[tuple[Row, float]]] = {}
    for row, weight in zip(selection.rows, selection.weights, strict=True):
        by_question.setdefault(row.question.uid, []).append((row, weight))
    settings = round.settings.mixing
    return [
        example
        for rows in by_question.values()
        for example in mixing.examples(
            rows[0][0].question,
            rows,
            exemplars,
            own=_prompt_exemplars(prompts, rows),
            formats=settings.formats,
            keep=settings.keep,
            merge_equal=settings.merge_equal,
            normalise=settings.normalise,
            writer=round.context.prompts,
        )
    ]


def _prompt_exemplars(
    prompts: Sequence[FewShot], rows: Sequence[tuple[Row, float]]
) -> dict[int, tuple[Exemplar, ...]]:
    """Returns the exemplars of each sample's prompt, by its index; {} without such prompts."""
    if not prompts:
        return {}
    samples = [row.sample for row, _ in rows]
    return {
        sample.sample_index: prompts[prompt_of(sample.uid, sample.sample_index, prompts)].exemplars
        for sample in samples
    }


def read_examples(round: Round) -> dict[str, list[Example]]:
    """Reads a round's examples by source, "self_generated" and "human"."""
    store = round.store("mix")

    def read() -> dict[str, list[Example]]:
        by_source: dict[str, list[Example]] = {"self_generated": [], "human": []}
        for name in store.names():
            if (source := name.split("-")[0]) in by_source:
                by_source[source] += [Example.from_json(row) for row in store.read(name)]
        return by_source

    return round.once("examples", read)


def read_pairs(round: Round) -> list[ExamplePair]:
    """Reads the pairs that a round trains on; none if it has examples."""
    store = round.store("mix")

    def read() -> list[ExamplePair]:
        names = [name for name in store.names() if name.startswith(("pairs-", "last_pairs-"))]
        return [ExamplePair.from_json(row) for name in names for row in store.read(name)]

    return round.once("pairs", read)


def read_funnel(round: Round) -> dict[str, list[FilterCounts]]:
    """Returns what each filter of a round kept, in their order, by task; {} without filters."""
    store = round.store("mix")
    names = [name for name in store.names() if name.startswith("funnel-")]
    return {
        name.removeprefix("funnel-"): [FilterCounts(**row) for row in store.read(name)]
        for name in names
    }


def labelled_funnel(round: Round) -> list[dict[str, Any]]:
    """Returns what the vote and each filter kept of each task's samples, right and wrong counted.

    If the filters do not keep today what they kept then (someone's own filter was changed since),
    it is what they kept then, without right and wrong.
    """
    settings, stored = round.settings, read_funnel(round)
    filters = settings.mixing.filters if settings.training.preference is None else ()
    steps = []
    for task, voted in round.voted().items():
        rows, facts = read_scored_rows(round, task, voted)
        answers = train_answers(round.context.questions, task)
        now = list(select(rows, filters, facts, answers).steps)
        unlabelled = [dataclasses.replace(step, right=0, wrong=0, punished_right=0) for step in now]
        if unlabelled != stored.get(task, []):
            now = stored.get(task, [])
        steps += [{"task": task, **one.to_json()} for one in (_vote(voted, rows, answers), *now)]
    return steps


def _vote(voted: Sequence[Voted], rows: Sequence[Row], answers: Answers) -> FilterCounts:
    """Returns the step from all samples to those that training may learn."""
    samples = sum(len(rows) for _, rows, _ in voted)
    parsed = sum(vote.parsed for _, _, vote in voted)
    answered = sum(row.key is not None for row in rows)
    dropped = {
        "another answer": parsed - answered,
        "no answer": samples - parsed - (len(rows) - answered),
    }
    right, wrong = right_and_wrong(rows, answers)
    return FilterCounts(
        filter="Vote",
        rows=samples,
        kept=len(rows),
        questions=len({row.question.uid for row in rows}),
        weight=float(len(rows)),
        dropped={why: n for why, n in dropped.items() if n},
        right=right,
        wrong=wrong,
    )
