"""Voting: samples -> votes, one shard per task."""

from collections.abc import Sequence
from typing import Any

from lmsi_jax import voting
from lmsi_jax.augmentation import PARAPHRASED
from lmsi_jax.errors import LmsiError
from lmsi_jax.pipeline import scorers
from lmsi_jax.pipeline.context import Round, Samples, read_samples
from lmsi_jax.pipeline.step import ROTATIONS, Fields, Step, custom_code
from lmsi_jax.records import Question, Sample, Vote
from lmsi_jax.runtime.store import ShardStore

VOTING = (
    Fields(part="voting", without=("ties", "scorer", "rotate_options")),
    ROTATIONS,
    Fields(part="voting", names=("ties",), when=lambda round: round.settings.voting.uses_scorer),
)
"""Settings of every step that votes; `scorer_record` has the scorer."""


def scorer_record(round: Round) -> dict[str, Any]:
    """Returns the fingerprint of the vote's scorer, for a stage's record; {} without one."""
    rule = round.settings.voting
    if not rule.uses_scorer or rule.scorer is None:
        return {}
    return {"scorers": scorers.fingerprints([rule.scorer])}


def _has_two_views(round: Round) -> bool:
    return round.settings.augmentation.paraphrase != "none"


def _from_two_views(round: Round, task: str, votes: Sequence[Vote], samples: Samples) -> list[Vote]:
    """Returns the votes with the labels that the questions and their paraphrases give."""
    rule = round.settings.augmentation.paraphrase
    assert rule != "none"
    drawn = read_samples(round.store("sample"), f"{task}{PARAPHRASED}")
    others = {
        uid: cast_vote(round, question, drawn[question.uid])
        for uid, question in round.paraphrases(task).items()
    }
    found, moved = [], 0
    for vote in votes:
        other = others.get(vote.uid)
        if other is not None:
            indices = sorted(sample.sample_index for sample in samples[vote.uid])
            label = voting.with_second_view(vote, other, indices, rule)
            moved += label.winner != vote.winner
            vote = label
        found.append(vote)
    print(
        f"round {round.index}: {len(others)} of {len(votes)} questions of {task} have a second "
        f"view, which changes {moved} labels",
        flush=True,
    )
    return found


class VoteStep(Step):
    """Votes on every question that the round sampled."""

    name = "vote"
    settings = (*VOTING, Fields(part="augmentation", names=("paraphrase",), when=_has_two_views))
    inputs = ("sample", "paraphrase")

    def derived(self, round: Round) -> dict[str, Any]:
        return scorer_record(round) | custom_code(round, "read", "equal")

    def write(self, round: Round, store: ShardStore) -> None:
        for task, questions in round.questions.items():
            samples = round.samples(task)
            votes = [cast_vote(round, question, samples[question.uid]) for question in questions]
            if _has_two_views(round):
                votes = _from_two_views(round, task, votes, samples)
            store.write(task, [vote.to_json() for vote in votes])


def cast_vote(round: Round, question: Question, samples: Sequence[Sample]) -> Vote:
    """Votes as the run's `Voting` says.

    Raises:
      LmsiError: the scorer gives no number, or one below 0 that is a weight.
    """
    rule = round.settings.voting
    scores = None
    if rule.uses_scorer and rule.scorer is not None:
        known = round.context.scorer_scores
        names = [(rule.scorer, one.uid, one.sample_index, one.text) for one in samples]
        unscored = [one for one, name in zip(samples, names, strict=True) if name not in known]
        if unscored:
            asked = [(voting.as_asked(question, one, rule), one) for one in unscored]
            given = scorers.apply_scorer(rule.scorer, asked)
            for one, score in zip(unscored, given, strict=True):
                known[rule.scorer, one.uid, one.sample_index, one.text] = score
        scores = [known[name] for name in names]
        if rule.weights == "scorer" and (low := min(scores, default=0.0)) < 0:
            raise LmsiError(
                f"the scorer {rule.scorer!r} gives {low:g} to a sample of {question.uid!r}, and a "
                "vote weighs 0 or more; let it return exp(score), or use it for Voting.ties alone"
            )
    return voting.cast(question, samples, rule, scores, round.reader.read(question, samples))
