"""How different the kept paths are, and the stop rules against collapse.

Label-free training fails by getting surer without getting better: confidence rises while the
answers' entropy and the number of distinct paths fall. Neither needs a label to be seen.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from lmsi_jax.records import Path, Vote


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diversity:
    """Averages over questions.

    Attributes:
      questions: how many.
      mean_confidence: share of paths that agree with the vote.
      mean_entropy: of the answers, in nats.
      distinct_kept: different texts among the kept paths of a question.
      empty: share of questions of which nothing was parsed.
    """

    questions: int
    mean_confidence: float
    mean_entropy: float
    distinct_kept: float
    empty: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class StopRules:
    """When a further round would feed on itself. Each is a switch; 0 turns one off.

    Attributes:
      max_confidence: stop once the votes' mean confidence is at least this ...
      min_distinct: ... while fewer distinct paths than this are kept per question.
      min_entropy: stop once the answers' mean entropy is below this.
      max_empty: stop once more than this share of the questions has no parsed answer.
    """

    max_confidence: float = 0.95
    min_distinct: float = 2.0
    min_entropy: float = 0.02
    max_empty: float = 0.9


def measure(votes: Sequence[Vote], paths: Mapping[str, Sequence[Path]]) -> Diversity:
    """Measures a round.

    Args:
      votes: one vote per question.
      paths: the paths of each question, by uid.
    """
    count = max(1, len(votes))
    kept = [
        len({path.text for path in paths[vote.uid] if path.index in set(vote.kept)})
        for vote in votes
    ]
    return Diversity(
        questions=len(votes),
        mean_confidence=sum(vote.confidence for vote in votes) / count,
        mean_entropy=sum(vote.entropy for vote in votes) / count,
        distinct_kept=sum(kept) / count,
        empty=sum(vote.winner is None for vote in votes) / count,
    )


def alarms(now: Diversity, rules: StopRules) -> list[str]:
    """Returns the reasons, in plain words, why no further round should follow; [] for none."""
    found = []
    sure = rules.max_confidence and now.mean_confidence >= rules.max_confidence
    if sure and now.distinct_kept < rules.min_distinct:
        found.append(
            f"the votes are sure (mean confidence {now.mean_confidence:.2f}) while only "
            f"{now.distinct_kept:.1f} distinct paths are kept per question"
        )
    if now.mean_entropy < rules.min_entropy and now.empty < 1:
        found.append(
            f"the answers hardly differ any more (mean entropy {now.mean_entropy:.3f} nats)"
        )
    if rules.max_empty and now.empty > rules.max_empty:
        found.append(f"{100 * now.empty:.0f} % of the questions have no parsed answer")
    return found
