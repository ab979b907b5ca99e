"""What a person sets of the watch: from where on a figure is an alarm."""

import dataclasses

from lmsi_jax.errors import LmsiError

NAMES = (
    *("sure", "same", "empty"),
    *("surer", "gap", "passed", "entropy", "distinct"),
    *("shorter", "longer", "unparsed", "easy", "kept"),
)
"""All alarms. The first line looks at a round alone; the first three of the second need gold."""

_SINGLE = (
    *("same", "empty", "confidence_rise", "accuracy_fall"),
    *("gap", "pass_fall", "unparsed", "easy"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch:
    """From where on a figure is an alarm. Each is a switch, and 0 turns it off.

    Pairs from `entropy` on are against the first comparable round and against the round before.

    Attributes:
      sure: the vote's mean share is at least the first, while fewer different paths than the second
        agree with a question's vote.
      same: the answers' entropy is below this.
      empty: more than this share of the questions has no parsed answer.
      confidence_rise: the vote's share rose by this ...
      accuracy_fall: ... while its accuracy fell by this, and by two of its standard errors.
      gap: the vote's mean share is above its accuracy by this.
      pass_fall: pass@m fell by this, and by two of its standard errors.
      entropy: the answers' entropy is below these shares of what it was.
      distinct: likewise distinct-2.
      shorter: likewise the paths' length.
      longer: the paths' length is above these multiples of what it was.
      unparsed: the share of unparsed paths rose by this.
      easy: easy questions have more than this share of the training weight, and more than before.
      kept: the share of questions that give training rows is below these shares of what it was.
      least_questions: fewer questions say nothing but "empty".
      stop: names of alarms after which no further round follows; () only warns. "surer", "gap" and
        "passed" look at gold answers of the test questions, so a run that they end has seen labels.
        The default ends runs whose further rounds would feed on themselves.
    """

    sure: tuple[float, float] = (0.95, 2.0)
    same: float = 0.006
    empty: float = 0.9
    confidence_rise: float = 0.05
    accuracy_fall: float = 0.03
    gap: float = 0.25
    pass_fall: float = 0.05
    entropy: tuple[float, float] = (0.25, 0.5)
    distinct: tuple[float, float] = (0.4, 0.6)
    shorter: tuple[float, float] = (0.5, 0.7)
    longer: tuple[float, float] = (2.0, 1.5)
    unparsed: float = 0.1
    easy: float = 0.8
    kept: tuple[float, float] = (0.5, 0.7)
    least_questions: int = 30
    stop: tuple[str, ...] = ("sure", "same", "empty")

    def __post_init__(self) -> None:
        for name in self.stop:
            if name not in NAMES:
                raise LmsiError(f"Watch.stop has {name!r}; choose from {', '.join(NAMES)}")
        for name in _SINGLE:
            if getattr(self, name) < 0:
                raise LmsiError(f"Watch.{name} = {getattr(self, name)}; 0 (off) or more")
        if len(self.sure) != 2 or min(self.sure) < 0:
            raise LmsiError(
                f"Watch.sure = {self.sure}; two numbers of 0 or more: a share, and different paths"
            )
        for name in ("entropy", "distinct", "shorter", "longer", "kept"):
            pair = getattr(self, name)
            if len(pair) != 2 or min(pair) < 0:
                raise LmsiError(
                    f"Watch.{name} = {pair}; two numbers of 0 or more: against the first round, "
                    "and against the round before"
                )
