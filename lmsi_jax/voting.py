"""The majority vote over a question's samples (LMSI, section 3.1; Wang et al. 2022, section 2).

Pure functions of the samples as a set: their order never matters. `read_answers` finds each
sample's answer, `weigh` gives it a weight (1 in LMSI), and `vote` counts. `samples_needed` is
Adaptive-Consistency (Aggarwal et al. 2023): how many samples a question needs at all.
"""

import collections
import dataclasses
import logging
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from fractions import Fraction
from typing import Literal, NamedTuple

from lmsi_jax import answers
from lmsi_jax.config import Voting
from lmsi_jax.records import Question, Sample, Vote

_LOG = logging.getLogger(__name__)


class Reading(NamedTuple):
    """A sample as the vote reads it.

    Attributes:
      key: canonical form of its answer; None if it has none and does not vote.
      surface: the answer in clean words that read back to the key, as it is taught.
      end: the solution is `text[:end]`, up to and with its answer sentence.
      marked: False if nothing says that this is the answer, as in "So she has 18 apples."
    """

    key: str | None
    surface: str | None
    end: int
    marked: bool


NO_ANSWER = Reading(None, None, 0, False)


class AnswerReader:
    """Reads the answers of samples, and each text of a question only once.

    Args:
      conclusions: see `Voting.conclusions`.
      rotate_options: see `Voting.rotate_options`; keys are then of the question's own order,
        surfaces of the order in which the sample was asked.
    """

    def __init__(self, conclusions: bool = True, rotate_options: bool = False):
        self._conclusions = conclusions
        self._rotates = rotate_options
        self._readings: dict[tuple[str, bool], dict[str, Reading]] = {}

    def read(self, question: Question, samples: Iterable[Sample]) -> list[Reading]:
        """Returns the reading of each of a question's samples, in their order."""
        count = answers.rotations(question) if self._rotates else 1
        if count > 1:
            return [self._read_rotated(question, sample, count) for sample in samples]
        options = answers.options_of(question)
        cut = self._readings.setdefault((question.uid, False), {})
        whole = self._readings.setdefault((question.uid, True), {}) if self._conclusions else cut
        readings = []
        for sample in samples:
            known, text = whole if sample.concluded else cut, sample.text
            reading = known.get(text)
            if reading is None:
                reading = _read(question, text, options, finished=known is not cut)
                known[text] = reading
            readings.append(reading)
        if question.rules is not None and question.rules.equal is not None:
            return _with_equal_keys(readings, question.rules.equal)
        return readings

    def _read_rotated(self, question: Question, sample: Sample, count: int) -> Reading:
        """Returns the reading of a sample of one of the question's rotations."""
        by = sample.sample_index % count
        asked = answers.rotate(question, by)
        known = self._readings.setdefault((f"{question.uid}/{by}", self._concludes(sample)), {})
        if sample.text not in known:
            options = answers.options_of(asked)
            known[sample.text] = _read(asked, sample.text, options, self._concludes(sample))
        reading = known[sample.text]
        if reading.key is None:
            return reading
        return reading._replace(key=answers.unrotated_letter(reading.key, by, count))

    def _concludes(self, sample: Sample) -> bool:
        return self._conclusions and sample.concluded

    def clear(self) -> None:
        """Forgets all texts."""
        self._readings.clear()


def as_asked(question: Question, sample: Sample, voting: Voting) -> Question:
    """Returns a question as the model was asked for a sample: with its options rotated, or not."""
    return answers.rotate(question, sample.sample_index) if voting.rotate_options else question


def read_answers(
    question: Question, samples: Iterable[Sample], conclusions: bool = True
) -> list[Reading]:
    """Returns the reading of each of a question's samples, in their order.

    Args:
      question: what was asked; its `gold` is not looked at.
      samples: its samples.
      conclusions: see `Voting.conclusions`.
    """
    return AnswerReader(conclusions).read(question, samples)


def _read(question: Question, text: str, options: Sequence[str], finished: bool) -> Reading:
    """Returns what a sample says; a defect of the reader costs this sample its vote, no more."""
    rules = question.rules
    try:
        if rules is not None and rules.read is not None:
            return _custom_reading(question, text, options, rules.read(text, question))
        found = answers.find(text, question.kind, options, finished=finished)
        if found is None or found.key is None:
            return NO_ANSWER
        answer, key, end, marked = found
        surface = answers.surface(answer, question.kind, found.key, options)
        if rules is not None and rules.equal is not None:
            key = _one_line(surface)
        return Reading(key, surface, end, marked)
    except Exception as error:  # noqa: BLE001
        if rules is None or rules.read is None or _is_news(rules.read, error):
            _LOG.exception("a sample could not be read and does not vote: %r", text[:200])
        return NO_ANSWER


_NEWS = 3
_REPORTED: collections.Counter[tuple[object, type]] = collections.Counter()


def _is_news(function: object, error: Exception) -> bool:
    """Counts an error of a user's function; True for the first few of a kind, which are logged."""
    _REPORTED[function, type(error)] += 1
    return _REPORTED[function, type(error)] <= _NEWS


def _custom_reading(
    question: Question, text: str, options: Sequence[str], result: object
) -> Reading:
    """Returns the reading of a user's reader; the solution ends with the line of the answer.

    Raises:
      TypeError: the result is neither None, nor a text, nor several texts.
    """
    if result is None:
        return NO_ANSWER
    candidates = list(result) if isinstance(result, list | tuple) else [result]
    for candidate in candidates:
        if not isinstance(candidate, str):
            raise TypeError(f"an answer must be a text, and {candidate!r} is none")
        key = _label_key(question, candidate, options)
        if key is not None:
            surface = _one_line(candidate)
            if question.rules is None or question.rules.equal is None:
                surface = answers.surface(candidate, question.kind, key, options)
            begin = text.rfind(candidate)
            end = text.find("\n", begin + len(candidate)) if begin >= 0 else -1
            return Reading(key, surface, end if end >= 0 else len(text.rstrip()), True)
    return NO_ANSWER


def _label_key(question: Question, label: str, options: Sequence[str]) -> str | None:
    """Returns the key of an answer: canonical, or its text if a user's equality compares it."""
    if question.rules is not None and question.rules.equal is not None:
        return _one_line(label) or None
    return answers.key(label, question.kind, options)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _with_equal_keys(
    readings: Sequence[Reading], equal: Callable[[str, str], bool]
) -> list[Reading]:
    """Gives all answers that a user's equality joins one key, whatever the samples' order."""
    keys = sorted({reading.key for reading in readings if reading.key is not None}, key=_by_length)
    firsts: list[str] = []
    merged = {}
    for key in keys:
        merged[key] = next((first for first in firsts if _is_equal(equal, first, key)), key)
        if merged[key] == key:
            firsts.append(key)
    return [
        reading if reading.key is None else reading._replace(key=merged[reading.key])
        for reading in readings
    ]


def _by_length(key: str) -> tuple[int, str]:
    return len(key), key


def _is_equal(equal: Callable[[str, str], bool], first: str, second: str) -> bool:
    """Asks a user's equality; answers that it cannot compare differ."""
    if first == second:
        return True
    try:
        return bool(equal(first, second))
    except Exception as error:  # noqa: BLE001
        if _is_news(equal, error):
            _LOG.exception("two answers could not be compared and differ: %r, %r", first, second)
        return False


def adaptive_stop(a: int, b: int, threshold: float = 0.95) -> bool:
    """Returns True if the leading answer stays ahead with at least this probability.

    The Beta criterion of Adaptive-Consistency (Aggarwal et al. 2023, section 3): under a uniform
    prior, P(p > 1/2 | a, b) = 1 - I_0.5(a + 1, b + 1). That is P(Binomial(a + b + 1, 1/2) <= a),
    so it is computed exactly.

    Args:
      a: votes of the leading answer.
      b: votes of the second answer.
      threshold: least probability, in [0, 1].

    Raises:
      ValueError: negative votes.
    """
    if a < 0 or b < 0:
        raise ValueError(f"votes cannot be negative: {a}, {b}")
    tosses = a + b + 1
    heads = sum(math.comb(tosses, j) for j in range(a + 1))
    return Fraction(heads, 2**tosses) >= Fraction(threshold)


def is_settled(keys: Iterable[str | None], threshold: float = 0.95) -> bool:
    """Returns True if the two leading answers among these keys meet `adaptive_stop`.

    Args:
      keys: canonical answers of a question's first samples, in any order; None if unparsed.
      threshold: least probability; above 0.5, no votes at all settle nothing.
    """
    votes = sorted(collections.Counter(k for k in keys if k is not None).values(), reverse=True)
    a, b = (*votes, 0, 0)[:2]
    return adaptive_stop(a, b, threshold)


def samples_needed(keys: Sequence[str | None], threshold: float = 0.95, every: int = 4) -> int:
    """Returns how many of a question's samples Adaptive-Consistency draws (Aggarwal et al. 2023).

    This is a function of the keys in index order alone: when and where a sample ended is no
    matter.

    Args:
      keys: canonical answers of the question's samples in index order; None if unparsed.
      threshold: least probability that the leading answer stays ahead, in (0.5, 1).
      every: the rule is checked after this many samples, twice as many, and so on.

    Returns:
      The first multiple of `every` whose first samples are `is_settled`; `len(keys)` if there is
      none.

    Raises:
      ValueError: `every` is not positive.
    """
    if every < 1:
        raise ValueError(f"the rule cannot be checked every {every} samples")
    checks = range(every, len(keys), every)
    return next((n for n in checks if is_settled(keys[:n], threshold)), len(keys))


EQUAL = Voting()
"""One sample, one vote."""


def weigh(
    samples: Sequence[Sample], voting: Voting, scores: Sequence[float] | None = None
) -> list[float] | None:
    """Returns the weight of each sample, in [0, 1] or a scorer's; None if each counts 1.

    A sample that is exp(-745) times as likely as the likeliest weighs 0.

    Args:
      samples: a question's.
      voting: the rule.
      scores: the scorer's score of each sample; None without a scorer.

    Raises:
      ValueError: the rule weighs by a scorer, and there are no scores.
    """
    if voting.weights == "none" or not samples:
        return None
    if voting.weights == "scorer":
        if scores is None:
            raise ValueError("Voting.weights = 'scorer' needs the scorer's score of each sample")
        return list(scores)
    if voting.weights == "logprob":
        return _relative([sample.logprob for sample in samples])
    per_token = [math.exp(min(0.0, sample.logprob / max(1, sample.tokens))) for sample in samples]
    if voting.weights == "normalised_logprob":
        return per_token
    relative = _relative([p / voting.temperature for p in per_token])
    total = math.fsum(relative)
    return [weight / total for weight in relative]


def _relative(logs: Sequence[float]) -> list[float]:
    """exp of each, divided by the largest."""
    most = max(logs)
    return [math.exp(log - most) if log > -math.inf else 0.0 for log in logs]


_INDEX = operator.attrgetter("sample_index")


def vote(
    question: Question,
    samples: Sequence[Sample],
    weights: Sequence[float] | None = None,
    *,
    conclusions: bool = True,
    scores: Sequence[float] | None = None,
    readings: Sequence[Reading] | None = None,
) -> Vote:
    """Counts the samples' answers, or adds up their weights.

    Unparsed samples never vote, and stay in the confidence's denominator with their weight. Answers
    with equal sums are listed in `tied`; a tie goes to the larger summed log-probability of the
    answer's samples, then to the smaller key.

    Args:
      question: what was asked; its `gold` is not looked at.
      samples: its samples, in any order.
      weights: of each sample, in the order of `samples`, from `weigh` or any other scorer; 0 or
        more. None: one sample, one vote.
      conclusions: see `Voting`; not looked at with `readings`.
      scores: a scorer's score of each sample, in the order of `samples`: a tie goes by the best one
        of an answer first. None: ties go by log-probability.
      readings: of each sample, in the order of `samples`, from an `AnswerReader`; None reads them.

    Returns:
      The vote; without any parsed sample the winner is None and nothing is kept.

    Raises:
      ValueError: a sample of another question, an index that comes twice, a log-probability that is
        not a number, or weights that are negative, infinite or not one for each sample.
    """
    ordered, weighed = _checked(question, samples, weights)
    if readings is None:
        readings = read_answers(question, ordered, conclusions)
    else:
        indices = [sample.sample_index for sample in samples]
        by_place = dict(zip(indices, readings, strict=True))
        readings = [by_place[sample.sample_index] for sample in ordered]
    keys, surfaces, ends, marked = zip(*readings, strict=True) if readings else ((), (), (), ())
    sums = _sums(keys, weighed)
    by_index = (
        {} if scores is None else {p.sample_index: r for p, r in zip(samples, scores, strict=True)}
    )
    winner, tied = _winner(sums, ordered, keys, by_index)
    agree = tuple(
        [sample.sample_index for sample, key in zip(ordered, keys, strict=True) if key == winner]
    )
    total = len(ordered) if weighed is None else math.fsum(weighed)
    return Vote(
        uid=question.uid,
        task=question.task,
        winner=winner,
        keys=keys,
        kept=agree if winner is not None else (),
        confidence=min(1.0, sums[winner] / total) if winner is not None and total else 0.0,
        parsed=len(keys) - keys.count(None),
        total=len(ordered),
        tied=tied,
        entropy=entropy(sums.values()),
        weights=weighed,
        surfaces=surfaces,
        ends=ends,
        marked=marked,
    )


def cast(
    question: Question,
    samples: Sequence[Sample],
    voting: Voting,
    scores: Sequence[float] | None = None,
    readings: Sequence[Reading] | None = None,
) -> Vote:
    """Votes by a rule; `scores` and `readings` as in `vote`."""
    return vote(
        question,
        samples,
        weigh(samples, voting, scores),
        conclusions=voting.conclusions,
        scores=scores if voting.ties == "scorer" else None,
        readings=readings,
    )


def right_keys(question: Question) -> Set[str]:
    """Returns the keys that count as right, as a set to test keys against."""
    options = answers.options_of(question)
    labels = (question.gold or "", *question.also)
    keys = (_label_key(question, label, options) for label in labels)
    right = {key for key in keys if key is not None}
    if question.rules is None or question.rules.equal is None:
        return right
    return _EqualTo(right, question.rules.equal)


class _EqualTo(Set[str]):
    """The keys that a user's equality finds equal to a label."""

    def __init__(self, labels: Set[str], equal: Callable[[str, str], bool]):
        self._labels, self._equal = labels, equal
        self._known: dict[object, bool] = {}

    def __contains__(self, key: object) -> bool:
        if key not in self._known:
            self._known[key] = isinstance(key, str) and any(
                _is_equal(self._equal, label, key) for label in self._labels
            )
        return self._known[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._labels)

    def __len__(self) -> int:
        return len(self._labels)


def tally(vote: Vote) -> tuple[Mapping[str, float], float]:
    """Returns each answer's votes or weight, and those of all samples, unparsed ones too."""
    total = vote.total if vote.weights is None else math.fsum(vote.weights)
    return _sums(vote.keys, vote.weights), total


View = Literal["harmonic", "cross"]


def with_second_view(vote: Vote, other: Vote, indices: Sequence[int], rule: View) -> Vote:
    """Returns a question's vote with the label that two phrasings of it give.

    "harmonic" (Self-Harmony, 2511.01191): the answer with the largest 2 p0 p1 / (p0 + p1) of its
    shares of both views, of equals the one with the larger share of the first, then the smaller
    key; the score is the confidence. Without a common answer the vote stays as it is.
    "cross" (Co-rewarding, 2508.00410): the other view's winner, with its confidence there; samples
    of this view that disagree are not kept. Without a winner there the vote stays as it is.

    Args:
      vote: over the samples of the question as it was asked.
      other: over the samples of its paraphrase.
      indices: the first view's sample indices, rising.
      rule: see above.
    """
    if rule == "cross":
        if other.winner is None:
            return vote
        winner, confidence, tied = other.winner, other.confidence, other.tied
    else:
        (sums, total), (others, other_total) = tally(vote), tally(other)
        scores = {
            key: harmonic_mean(value / total, others[key] / other_total)
            for key, value in sums.items()
            if key in others and value and others[key]
        }
        if not scores:
            return vote
        confidence = max(scores.values())
        best = [key for key, score in scores.items() if score == confidence]
        winner = min(best, key=lambda key: (-sums[key], key))
        tied = tuple(sorted(best)) if len(best) > 1 else ()
    kept = tuple([index for index, key in zip(indices, vote.keys, strict=True) if key == winner])
    return dataclasses.replace(vote, winner=winner, kept=kept, confidence=confidence, tied=tied)


def harmonic_mean(first: float, second: float) -> float:
    """Returns 2 a b / (a + b); 0.0 if both are 0."""
    return 2 * first * second / (first + second) if first + second else 0.0


def margin(vote: Vote) -> float:
    """Returns the winner's share minus that of the next answer, of all votes or weights, in [0, 1].

    Unparsed samples stay in the denominator; 0.0 for a tie and without a winner.
    """
    sums, total = tally(vote)
    first, second = (*sorted(sums.values(), reverse=True), 0, 0)[:2]
    return (first - second) / total if total else 0.0


def entropy(counts: Iterable[float]) -> float:
    """Returns the entropy (nats) of the distribution that counts or weights give; 0.0 for none."""
    counts = [n for n in counts if n > 0]
    if len(counts) < 2:
        return 0.0
    total = math.fsum(counts)
    shares = [n / total for n in counts]
    return math.fsum([-share * math.log(share) for share in shares if share > 0]) + 0.0


def winner_of_first(vote: Vote, samples: Iterable[Sample], count: int) -> str | None:
    """Returns the winner among a question's first `count` samples, by `vote` without scores.

    Args:
      vote: the vote over all of `samples`.
      samples: the question's samples, in any order.
      count: how many of them vote, in index order.

    Raises:
      ValueError: the vote is over another number of samples.
    """
    ordered = sorted(samples, key=_INDEX)
    if len(ordered) != vote.total:
        raise ValueError(
            f"{vote.uid!r}: a vote over {vote.total} samples, {len(ordered)} are given"
        )
    keys = vote.keys[:count]
    weights = vote.weights[:count] if vote.weights is not None else None
    return _winner(_sums(keys, weights), ordered[:count], keys, {})[0]


def _checked(
    question: Question, samples: Sequence[Sample], weights: Sequence[float] | None
) -> tuple[list[Sample], tuple[float, ...] | None]:
    """Returns the samples in the order of their indices, and their weights."""
    if weights is not None and len(weights) != len(samples):
        raise ValueError(
            f"question {question.uid!r}: {len(weights)} weights, {len(samples)} samples"
        )
    ordered = sorted(samples, key=_INDEX)
    uid = question.uid
    for sample in ordered:
        if sample.uid != uid:
            raise ValueError(f"a sample of question {sample.uid!r} cannot vote on {uid!r}")
        if sample.logprob != sample.logprob:  # NaN
            raise ValueError(
                f"sample {sample.sample_index} of question {sample.uid!r} has no log-probability"
            )
    indices = [sample.sample_index for sample in ordered]
    if len(set(indices)) < len(indices):
        twice = next(i for i, count in collections.Counter(indices).items() if count > 1)
        raise ValueError(f"question {question.uid!r} has sample {twice} twice")
    if weights is None:
        return ordered, None
    if bad := [weight for weight in weights if not 0 <= weight < math.inf]:
        raise ValueError(f"question {question.uid!r}: {bad[0]} is no weight; use 0 or more")
    of_index = dict(zip([sample.sample_index for sample in samples], weights, strict=True))
    return ordered, tuple([float(of_index[index]) for index in indices])


def _sums(keys: Sequence[str | None], weights: Sequence[float] | None) -> Mapping[str, float]:
    if weights is None:
        counts: dict[str, float] = {}
        for key in keys:
            if key is not None:
                counts[key] = counts.get(key, 0) + 1
        return counts
    given: dict[str, list[float]] = collections.defaultdict(list)
    for key, weight in zip(keys, weights, strict=True):
        if key is not None:
            given[key].append(weight)
    # fsum is exact before it rounds, so the order of the samples cannot move the last bit.
    return {key: math.fsum(of_key) for key, of_key in given.items()}


def _winner(
    sums: Mapping[str, float],
    samples: Sequence[Sample],
    keys: Sequence[str | None],
    scores: Mapping[int, float],
) -> tuple[str | None, tuple[str, ...]]:
    """Returns the winning key, and the keys that share its sum if there are several."""
    if not sums:
        return None, ()
    most = max(sums.values())
    leaders = [key for key, n in sums.items() if n == most]
    if len(leaders) == 1:
        return leaders[0], ()
    leaders.sort()
    logprobs: dict[str | None, list[float]] = collections.defaultdict(list)
    best: dict[str | None, float] = {}
    for sample, key in zip(samples, keys, strict=True):
        logprobs[key].append(sample.logprob)
        if scores:
            score = scores.get(sample.sample_index, 0.0)
            best[key] = max(best.get(key, score), score)
    # A tie goes to the answer with the best score, then to the one with the likelier samples.
    mass = {leader: (best.get(leader, 0.0), math.fsum(logprobs[leader])) for leader in leaders}
    # max takes the first of equals, and leaders are sorted: the smaller key.
    return max(leaders, key=mass.__getitem__), tuple(leaders)
