"""Losses of solutions under the base model, in shards that several processes share."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lmsi_jax.generation.exemplars import FewShot, prompt_of
from lmsi_jax.models.tokenizer import Tokenizer, encode_first
from lmsi_jax.prompts import build_prompt, question_prompt, solution
from lmsi_jax.records import Exemplar, Question
from lmsi_jax.selection.rows import (
    ALONE_LOSS,
    LOGPROBS,
    LOSS,
    QUESTION_LOSS,
    STRONG_LOSSES,
    Row,
)
from lmsi_jax.stages.context import Context
from lmsi_jax.stages.prompts import read_prompts
from lmsi_jax.stages.questions import read_exemplars, worked_questions
from lmsi_jax.stages.scored_shards import in_shards, write_missing
from lmsi_jax.store import ShardStore
from lmsi_jax.training import packing, scoring

LOSSES = (LOSS, QUESTION_LOSS, ALONE_LOSS)
OF_BASE = frozenset({*LOSSES, LOGPROBS, STRONG_LOSSES})
"""The scores that the base model is loaded for."""


def score_losses(
    context: Context,
    round_index: int,
    rows: Mapping[str, Sequence[Row]],
    needs: frozenset[str],
) -> None:
    """Writes this process' missing shards of losses.

    Args:
      context: the run.
      round_index: the round.
      rows: different solutions, by task.
      needs: which losses, of `selection.rows`.

    Raises:
      LmsiError: the disk is full.
    """
    store = ShardStore(context.folder(round_index, "path_scores"))
    index, count = context.processes.share
    shards = list(_loss_shards(context, round_index, rows, needs))
    own = shards[index::count]

    def load() -> Callable[[Sequence[_Solved]], list[dict[str, Any]]]:
        """Loads the base model; returns what computes a shard's losses with it."""
        run = context.run
        scorer = scoring.Scorer.of(run.model, context.params(0), run.training)
        return functools.partial(_losses, context, scorer, LOGPROBS in needs)

    names, solved = [name for name, _ in own], [some for _, some in own]
    write_missing(store, names, solved, load, f"round {round_index}: scoring paths")


class _Solved(NamedTuple):
    """What identifies a solution in the store, its prompt and text, and which losses it gets."""

    identity: dict[str, Any]
    exemplars: Sequence[Exemplar]
    question: Question
    text: str
    wanted: tuple[str, ...]


def _loss_shards(
    context: Context, round_index: int, rows: Mapping[str, Sequence[Row]], needs: frozenset[str]
) -> Iterator[tuple[str, Sequence[_Solved]]]:
    """Yields (shard, solutions), the same in every process."""
    mean = needs | {LOSS} if LOGPROBS in needs else needs  # both are of the same tokens
    wanted = tuple(name for name in LOSSES if name in mean)
    for task, own in rows.items():
        exemplars = read_exemplars(context, task)
        if wanted:
            made = read_prompts(context, round_index, task)
            solved = [_of_row(row, made, exemplars, wanted) for row in own]
            yield from in_shards(f"loss-{task}", solved)
        if STRONG_LOSSES in needs:
            given = worked_questions(context, task)
            yield f"strong-{task}", [_of_given(*one, exemplars) for one in given]


def _of_row(
    row: Row, made: Sequence[FewShot], exemplars: Sequence[Exemplar], wanted: tuple[str, ...]
) -> _Solved:
    """A path's solution, behind the prompt that it was sampled with."""
    uid, index = row.name
    own = made[prompt_of(uid, index, made)].exemplars if made else exemplars
    return _Solved({"uid": uid, "index": index}, own, row.question, row.solution, wanted)


def _of_given(question: Question, worked: Exemplar, exemplars: Sequence[Exemplar]) -> _Solved:
    text = solution(worked.reasoning, worked.answer)
    return _Solved({"uid": question.uid}, exemplars, question, text, (LOSS,))


def _losses(
    context: Context, scorer: scoring.Scorer, logprobs: bool, solved: Sequence[_Solved]
) -> list[dict[str, Any]]:
    """A shard's rows: each with the losses that there is room to compute."""
    rows, places = [], []
    for at, one in enumerate(solved):
        for name in one.wanted:
            prompt = _prompt(name, one.question, one.exemplars)
            rows.append(tokenised(context.tokenizer, *prompt, one.text))
            places.append((at, name))
    made: list[dict[str, Any]] = [dict(one.identity) for one in solved]
    for (at, name), losses in zip(places, scorer.losses(rows), strict=True):
        if losses is not None:
            made[at][name] = round(float(losses.mean()), 6)
            of_path = "index" in made[at]  # not of a given solution
            if logprobs and name == LOSS and of_path:
                made[at][LOGPROBS] = (0.0 - losses).round(5).tolist()
    return made


def _prompt(name: str, question: Question, exemplars: Sequence[Exemplar]) -> tuple[str, str]:
    """(prefix, inputs) before a solution; see `selection.rows`."""
    if name == LOSS:
        return build_prompt(question, exemplars, "cot")
    return "", question_prompt(question.text) if name == QUESTION_LOSS else "A:"


def tokenised(tokenizer: Tokenizer, prefix: str, inputs: str, text: str) -> packing.Row:
    """Returns a prompt and a solution, of which the solution's tokens alone have weight.

    Nothing stands before it or follows it. Texts are encoded apart, as training and decoding do.
    """
    before = encode_first(tokenizer, prefix) if prefix else []
    asked = tokenizer.encode(inputs) if prefix else encode_first(tokenizer, inputs)
    return packing.weighted_row(before, asked, tokenizer.encode(f" {text}"), 1.0)
