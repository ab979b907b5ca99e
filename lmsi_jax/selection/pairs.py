"""Pairs from votes: a path of the most voted answer against one of the least voted (ScPO)."""

import dataclasses
from collections.abc import Sequence

from lmsi_jax import voting
from lmsi_jax.records import Path, Vote


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Two paths of one question.

    Attributes:
      uid: the question.
      chosen: index of a path of the most voted answer.
      rejected: index of a path of the least voted one.
      weight: (V+ - V-) / k, above 0: how many more of the k paths agree with the chosen one; of a
        weighted vote its weights take the place of numbers.
    """

    uid: str
    chosen: int
    rejected: int
    weight: float


def pair(vote: Vote, paths: Sequence[Path], threshold: float = 0.5) -> Pair | None:
    """Returns a question's pair (Prasad et al. 2024, section 2), None where there is none.

    Of an answer's paths the most probable one is taken, of equals the first. Of equally rare
    answers the one is rejected whose best path is the most probable: the mistake that the model is
    the most inclined to make; then the smaller key. Unparsed paths are in no pair, and count in k.

    Args:
      vote: the vote over all of `paths`.
      paths: the question's paths, in any order.
      threshold: tau, as a share of k (or of all weights): least votes of the chosen answer.

    Raises:
      ValueError: the vote is over other paths, or the threshold is no share.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold = {threshold}; use a share of the paths, 0 to 1")
    if len(paths) != vote.total or any(path.uid != vote.uid for path in paths):
        raise ValueError(f"{vote.uid!r}: a vote over {vote.total} paths, others are given")
    ordered = sorted(paths, key=lambda path: path.index)
    best: dict[str, Path] = {}
    for path, key in zip(ordered, vote.keys, strict=True):
        if key is not None and (key not in best or path.logprob > best[key].logprob):
            best[key] = path
    votes, total = voting.tally(vote)
    if vote.winner is None or votes[vote.winner] < threshold * total:
        return None
    least = min(votes, key=lambda key: (votes[key], -best[key].logprob, key))
    ahead = votes[vote.winner] - votes[least]
    if ahead <= 0:  # one answer alone, or all equally frequent
        return None
    chosen, rejected = best[vote.winner].index, best[least].index
    return Pair(uid=vote.uid, chosen=chosen, rejected=rejected, weight=ahead / total)
