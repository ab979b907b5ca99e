"""Losses of solutions under the base model, in shards that several processes share."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from lmsi_jax.models.tokenizer import Tokenizer, encode_first
from lmsi_jax.progress import Progress
from lmsi_jax.prompts import build_prompt, question_prompt, solution
from lmsi_jax.records import Exemplar, Question
from lmsi_jax.selection.rows import ALONE_LOSS, LOSS, QUESTION_LOSS, STRONG_LOSSES, Row
from lmsi_jax.stages.context import Context
from lmsi_jax.stages.questions import read_exemplars, worked_questions
from lmsi_jax.store import ShardStore, shard_names
from lmsi_jax.training import packing, placement, scoring

LOSSES = (LOSS, QUESTION_LOSS, ALONE_LOSS)
_ROWS = 256  # a shard's rows are packed together, so their number enters the bits of the sums


def score_losses(
    context: Context,
    directory: epath.Path,
    rows: Mapping[str, Sequence[Row]],
    needs: frozenset[str],
    label: str,
) -> None:
    """Writes this process' missing shards of losses.

    Args:
      context: the run.
      directory: where the shards go.
      rows: different solutions, by task.
      needs: which losses, of `selection.rows`.
      label: what the progress says.

    Raises:
      LmsiError: the disk is full.
    """
    store = ShardStore(directory)
    index, count = context.processes.share
    shards = list(_loss_shards(context, rows, needs))
    own = [shard for number, shard in enumerate(shards) if number % count == index]
    missing = set(store.missing(name for name, _, _ in own))
    if not missing:
        return
    run = context.run
    params = placement.spread(run.model, run.training, context.params(0))
    scorer = scoring.Scorer(config=run.model, params=params, training=run.training)
    with Progress(label, len(own), unit="shards", initial=len(own) - len(missing)) as bar:
        for name, task, solved in own:
            if name in missing:
                store.write(name, _losses(context, scorer, task, solved))
                bar.advance()


_Solved = tuple[dict[str, Any], Question, str, tuple[str, ...]]
"""What identifies a solution in the store, its question, its text, and which losses it gets."""


def _loss_shards(
    context: Context, rows: Mapping[str, Sequence[Row]], needs: frozenset[str]
) -> Iterator[tuple[str, str, list[_Solved]]]:
    """Yields (shard, task, solutions), the same in every process."""
    wanted = tuple(name for name in LOSSES if name in needs)
    for task, own in rows.items():
        solved: list[_Solved] = [
            ({"uid": row.path.uid, "index": row.path.index}, row.question, row.solution, wanted)
            for row in own
        ]
        parts = [solved[at : at + _ROWS] for at in range(0, len(solved), _ROWS)]
        for number, part in zip(shard_names(len(parts)), parts, strict=True):
            if wanted:
                yield f"loss-{task}-{number}", task, part
        if STRONG_LOSSES in needs:
            given = worked_questions(context, task)
            yield (
                f"strong-{task}",
                task,
                [
                    ({"uid": question.uid}, question, _solved(worked), (LOSS,))
                    for question, worked in given
                ],
            )


def _solved(worked: Exemplar) -> str:
    return solution(worked.reasoning, worked.answer)


def _losses(
    context: Context, scorer: scoring.Scorer, task: str, solved: Sequence[_Solved]
) -> list[dict[str, Any]]:
    """A shard's rows: each with the losses that there is room to compute."""
    exemplars = read_exemplars(context, task)
    rows, places = [], []
    for at, (_, question, text, wanted) in enumerate(solved):
        for name in wanted:
            prompt = _prompt(name, question, exemplars)
            rows.append(tokenised(context.tokenizer, *prompt, text))
            places.append((at, name))
    made: list[dict[str, Any]] = [dict(identity) for identity, _, _, _ in solved]
    for (at, name), loss in zip(places, scorer.losses(rows), strict=True):
        if loss is not None:
            made[at][name] = loss
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
