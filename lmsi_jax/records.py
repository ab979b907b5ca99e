"""The records that cross stages: Question -> Sample -> Vote -> Example. Standard library alone.

Every record is a frozen dataclass that becomes one line of JSON and comes back equal. `SCHEMA` is
written with each store, so that a change of shape is noticed instead of misread.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Self

from lmsi_jax.errors import LmsiError

SCHEMA = 6

Kind = Literal["number", "choice", "yes_no", "nli", "span", "date", "list"]
Format = Literal["few_shot_cot", "few_shot_direct", "zero_shot_cot", "zero_shot_direct"]
Source = Literal["self_generated", "human"]
Text = str | tuple[str, ...]
"""A text; or texts and control tokens in turn, which begins and ends in a text, possibly "":
("", "<|im_start|>", "user\nHow many?", "<|im_end|>", "\n"). A string has no control tokens,
whatever its characters are."""
End = Literal["end_token", "stop", "next_question", "limit"]
"""Why a sample ended: at the model's end token or a chat template's, at a stop string that begins
the next question, at another stop string, or because its tokens ran out."""

KINDS: tuple[Kind, ...] = ("number", "choice", "yes_no", "nli", "span", "date", "list")
FORMATS: tuple[Format, ...] = (
    "few_shot_cot",
    "few_shot_direct",
    "zero_shot_cot",
    "zero_shot_direct",
)


def check_unique(questions: "Iterable[Question]") -> None:
    """Checks that no two questions have one uid: samples, votes and noise go by it.

    Raises:
      LmsiError: two have; names both.
    """
    seen: dict[str, Question] = {}
    for question in questions:
        first = seen.setdefault(question.uid, question)
        if first is not question:
            raise LmsiError(
                f"two questions have the uid {question.uid!r}: {first.text[:60]!r} of {first.task} "
                f"and {question.text[:60]!r} of {question.task}; give each its own"
            )


class _Record:
    """JSON in and out for a flat dataclass whose sequences are tuples."""

    def to_json(self) -> dict[str, Any]:
        """Returns a dictionary of plain JSON values, in field order."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """Builds the record from `to_json`'s dictionary; lists become tuples again.

        Raises:
          ValueError: a field is missing or unknown.
        """
        names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown := set(row) - names:
            raise ValueError(f"{cls.__name__} has no field {sorted(unknown)[0]!r}")
        try:
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})
        except TypeError as error:
            raise ValueError(f"{cls.__name__}: {error}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exemplar(_Record):
    """A worked question for a few-shot prompt.

    `question` carries its own prefix ("Q: ..." or "Premise: ..."); `reasoning` has no final answer
    sentence; `answer` is what stands between "The answer is " and the full stop.
    """

    question: str
    reasoning: str
    answer: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CustomRules:
    """Functions of a user's task in place of the package's; None keeps the package's.

    Attributes:
      read: (text, question) -> the answer of a sample's text, or candidates, the best one first;
        None or () for no answer. It may raise: the sample then has no answer.
      equal: (answer, other answer) -> True if they are the same. It must be an equivalence.
      prompt: (question, exemplars, prompt style) -> the text that the model continues, or that text
        in two parts, of which all questions of a task share the first.
      names: "read", "equal" and "prompt" -> where each comes from, for messages.
    """

    read: "Callable[[str, Question], Any] | None" = None
    equal: Callable[[str, str], bool] | None = None
    prompt: "Callable[[Question, Sequence[Exemplar], str], Any] | None" = None
    names: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question(_Record):
    """A question with its own prefix. `gold` is None wherever labels must not be seen.

    `also` are other answers that count as right. `spans`, for DROP's F1, are the spans of each
    annotator's answer, one a line. `rules` are those of a user's task; no file has them.
    """

    uid: str
    task: str
    text: str
    kind: Kind
    gold: str | None = None
    also: tuple[str, ...] = ()
    spans: tuple[str, ...] = ()
    rules: CustomRules | None = dataclasses.field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Returns a dictionary of plain JSON values; `also` and `spans` only if not empty."""
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del row["rules"]
        return {name: row[name] for name in row if row[name] or name not in ("also", "spans")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(_Record):
    """One sampled continuation of a question's prompt.

    `text` is what the model wrote after the prompt, cut before the stop string. `logprob` is the
    sum over its tokens of the model's log-probability at temperature 1 (nats), the end included.
    `end` says why it ended. `logprobs` are those of its tokens, on request.
    """

    uid: str
    sample_index: int
    text: str
    tokens: int
    logprob: float
    end: End
    logprobs: tuple[float, ...] | None = None

    @property
    def finished(self) -> bool:
        """False if the token limit cut it."""
        return self.end != "limit"

    @property
    def concluded(self) -> bool:
        """True if the sample ended at an end token or at the next question, not at a blank line or
        the token limit."""
        return self.end in ("end_token", "next_question")

    def to_json(self) -> dict[str, Any]:
        """Returns a dictionary of plain JSON values; `logprobs` only if it was requested.

        JSON has no infinity: a log-probability of minus infinity becomes None.

        Raises:
          ValueError: a log-probability is not a number, or plus infinity.
        """
        row = super().to_json()
        row["logprob"] = _finite(self.logprob, self)
        if self.logprobs is None:
            del row["logprobs"]
        else:
            row["logprobs"] = [_finite(value, self) for value in self.logprobs]
        return row

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """Builds the sample from `to_json`'s dictionary; raises what `_Record.from_json` raises."""
        row = {**row, "logprob": _logprob(row["logprob"])} if "logprob" in row else row
        if row.get("logprobs") is not None:
            row = {**row, "logprobs": [_logprob(value) for value in row["logprobs"]]}
        return super().from_json(row)


def samples_from_texts(uid: str, texts: Sequence[str]) -> list[Sample]:
    """Returns a question's samples from texts alone, numbered in their order.

    Each is taken as complete ("end_token"). Their log-probabilities and lengths are unknown: both
    are 0, so ties of the vote go to the smaller key, and `Voting.weights` weighs them alike.
    """
    return [
        Sample(uid=uid, sample_index=index, text=text, tokens=0, logprob=0.0, end="end_token")
        for index, text in enumerate(texts)
    ]


def _finite(logprob: float, sample: Sample) -> float | None:
    if math.isnan(logprob) or logprob == math.inf:
        raise ValueError(
            f"sample {sample.sample_index} of question {sample.uid!r} has the log-probability "
            f"{logprob}"
        )
    return None if logprob == -math.inf else logprob


def _logprob(value: float | None) -> float:
    return -math.inf if value is None else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vote(_Record):
    """The majority vote over one question's samples.

    `winner` is the winning key (None if nothing parsed), `kept` the indices of the samples that
    agree with it. `confidence` is agreeing samples over all samples, unparsed ones included (LMSI,
    section 3.1). `tied` lists every key that shared the highest count, the winner too, if there was
    more than one. `entropy` is that of the parsed answers' distribution, in nats. If samples were
    weighed, `weights` holds each one's, and counts and shares are sums of weights.

    `keys`, `surfaces`, `ends` and `marked` hold what was read of each sample, in index order, so
    that no text is parsed again (`voting.Reading` says what they are).
    """

    uid: str
    task: str
    winner: str | None
    keys: tuple[str | None, ...]
    kept: tuple[int, ...]
    confidence: float
    parsed: int
    total: int
    tied: tuple[str, ...]
    entropy: float
    weights: tuple[float, ...] | None = None
    surfaces: tuple[str | None, ...] = ()
    ends: tuple[int, ...] = ()
    marked: tuple[bool, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns a dictionary of plain JSON values; `weights` only if samples were weighed."""
        row = super().to_json()
        if row["weights"] is None:
            del row["weights"]
        return row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example(_Record):
    """One training row. The model reads `prefix + inputs` and learns `targets`.

    `prefix` is the few-shot part that rows of one task share ("" for zero-shot formats), kept apart
    so that packing can share its computation. `weight` multiplies the loss of the target tokens;
    below 0 they are punished (`Loss.negatives`).
    Targets that are a string end in a blank line, which is not written here; others have their end.
    """

    uid: str
    task: str
    format: Format
    source: Source
    prefix: Text
    inputs: Text
    targets: Text
    weight: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExamplePair(_Record):
    """Two continuations of one prompt, of which training learns to prefer `chosen`.

    The prompt is `prefix + inputs` as in `Example`. `weight` is the pair's: (V+ - V-) / k in ScPO,
    1 in SPIN.
    """

    uid: str
    task: str
    format: Format
    prefix: Text
    inputs: Text
    chosen: Text
    rejected: Text
    weight: float


def join_texts(*texts: Text) -> Text:
    """Returns texts as one, of which the parts are read one after the other."""
    joined: list[str] = [""]
    for text in texts:
        first, *rest = (text,) if isinstance(text, str) else text
        joined[-1] += first
        joined += rest
    return joined[0] if all(isinstance(text, str) for text in texts) else tuple(joined)


def plain_text(text: Text) -> str:
    """Returns a text with its control tokens written out."""
    return text if isinstance(text, str) else "".join(text)
