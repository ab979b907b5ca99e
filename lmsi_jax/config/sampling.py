"""Set prompting, sampling and voting: chats, samples, the decode engine's layout, votes."""

import dataclasses
import datetime
from typing import Annotated, Literal

from lmsi_jax.config.value_checks import (
    OBJECT,
    Range,
    at_least,
    check_fields,
    fraction,
    positive_fraction,
    refuse,
    temperatures,
    without_folder,
)
from lmsi_jax.errors import LmsiError
from lmsi_jax.prompts import STOP_STRINGS

_STOPPING_PROBABILITY = Range(
    lambda value: 0.5 < value < 1,
    "a probability above 0.5 and below 1 (0.95)",
)
_ANY_TEMPERATURE = Range(lambda value: value >= 1e-30, "1e-30 or more, infinity too")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat:
    """Prompting of an instruct model in its chat template, in all stages that ask it or train it.

    The value of `Run.chat`; None there asks as base models are asked. `include
    'prompting/instruct.gin'` sets it together with stop strings, prompt styles and formats.
    """

    exemplars: Literal["turns", "one_turn"] = "turns"
    """Few-shot exemplars as "turns" of their own, each a question and its answer; or all of them in
    "one_turn", the user's, before the question."""
    system: str = ""
    """System text; "" for none (some templates then write their own)."""
    system_turn: bool = True
    """Give the system text as a turn of its own; False writes it before the first question, for
    templates that have no such turn (Gemma)."""
    thinking: bool | None = None
    """Thinking on or off, for templates that have `enable_thinking`; None leaves it to them."""
    template: str = ""
    """File of the Jinja template; "" for the one in the folder of `Run.tokenizer`."""
    date: str = "2024-07-26"
    """Date in templates that write today's, so that a run asks the same on every day."""

    def __post_init__(self) -> None:
        check_fields(self)
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError:
            refuse(self, "date", "a date such as '2024-07-26'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling of chain-of-thought answers from the model."""

    num_samples: Annotated[int, at_least(1, unit="samples")] = 32
    """Samples drawn for each question, the paper's m."""
    temperature: Annotated[float, temperatures(greedy=True)] = 0.7
    """Sampling temperature; the LMSI paper uses 0.7 for the base model."""
    top_k: Annotated[int, at_least(0, unit="tokens", note="off")] = 0
    """Sample from this many most likely tokens."""
    top_p: Annotated[float, positive_fraction("1 for off")] = 1.0
    """Sample from the smallest set of tokens with this much probability."""
    min_p: Annotated[float, fraction("0 for off")] = 0.0
    """Sample from the tokens with at least this share of the most likely one's probability."""
    max_new_tokens: Annotated[int, at_least(1, unit="tokens")] = 256
    """A sample is cut here, and marked unfinished."""
    stop: tuple[str, ...] = STOP_STRINGS
    """A sample ends before the first of these strings; () ends samples at the end token alone. The
    default suits base models; the solutions of instruct models have blank lines, so they have ()
    (docs/models.md)."""
    token_logprobs: bool = False
    """Store the log-probability of each token of a sample."""
    greedy: bool = False
    """Also draw one greedy sample of each question, beside those that vote: a corrector's
    candidates have it (`lmsi export-candidates`)."""
    adaptive_consistency: Annotated[float | None, _STOPPING_PROBABILITY] = None
    """Stop sampling a question once its leading answer will stay ahead with this probability
    (adaptive consistency, Aggarwal et al. 2023, who use 0.95; `voting.samples_needed`); None
    draws all of them. Easy questions then have fewer samples: their confidence is a share of these,
    and with `Mixing.normalise = 'sample'` they weigh less."""
    adaptive_consistency_every: Annotated[int, at_least(1, unit="samples")] = 4
    """The rule is applied after this many samples, twice as many, ..., in the samples' order, so
    the outcome does not depend on which of them finish first."""

    def __post_init__(self) -> None:
        check_fields(self)
        stops = self.stop
        if not (isinstance(stops, tuple) and all(isinstance(s, str) and s for s in stops)):
            refuse(
                self,
                "stop",
                "a tuple of strings that are not empty, such as ('\\n\\n',), or () for none",
            )

    @property
    def truncation(self) -> "Truncation":
        """The settings that the decode loop is compiled for."""
        return Truncation(self.temperature == 0, self.top_k, self.top_p, self.min_p)


@dataclasses.dataclass(frozen=True)
class Truncation:
    """The part of `Sampling` that a decode loop is compiled for; temperature is an argument."""

    greedy: bool
    top_k: int
    top_p: float
    min_p: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """Layout of the decode engine. Together with the model it fixes the compiled shapes."""

    slots: Annotated[int, at_least(1, unit="samples")] = 128
    """Samples decoded at the same time, by each of the `data` device groups."""
    chunk: Annotated[int, at_least(1, unit="tokens")] = 8
    """Decode steps between two looks at the samples. A sample that ends wastes half a chunk on
    average."""
    page: Annotated[int, at_least(1, unit="tokens")] = 16
    """Positions in a page of the KV cache, a multiple of `chunk`."""
    prefill_tokens: Annotated[int, at_least(1, unit="tokens")] = 256
    """Question tokens prefilled together, approximately."""
    prompt_cache_factor: Annotated[float, at_least(1)] = 2.0
    """Question caches, as a multiple of the number that fills all slots. Samples end at different
    times, so the questions in flight overlap."""
    adaptive_batch: bool = True
    """Decode a smaller batch when there are fewer samples than slots, from the start or at the end.
    Fewer slots are used only where they are seen to change no bit."""
    pool_bytes: Annotated[int, at_least(0, unit="bytes")] = 256 * 2**20
    """Memory reserved for KV pages at the start, if that is more than half of what samples of full
    length take; the rest is added when samples need it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and KV cache."""
    data: Annotated[int, at_least(1, unit="devices")] = 1
    """Device groups that decode side by side, each with its own slots."""
    model: Annotated[int, at_least(1, unit="devices")] = 1
    """Devices in a group, over which heads, MLP and vocabulary are split."""
    fsdp: bool = False
    """Also shard the weights over the groups, and gather them where they are used."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.page % self.chunk:
            raise LmsiError(
                f"Decoding.page = {self.page} must be a multiple of Decoding.chunk = {self.chunk}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Voting:
    """Weight of each sample in a question's vote.

    Log-probabilities are the model's own, at temperature 1.
    """

    weights: Literal["none", "logprob", "normalised_logprob", "softmax", "scorer"] = "none"
    """Weight of a sample. "none": 1 (LMSI). "logprob": its probability, relative to the question's
    likeliest sample. "normalised_logprob": its probability per token, the geometric mean (both:
    Wang et al. 2022, table 1, weighted sums). "softmax": the softmax, over the question's samples,
    of the probability per token divided by `temperature` (CISC, Taubenfeld et al. 2025, section 3,
    response probability). "scorer": the number that `scorer` returns, 0 or more."""
    temperature: Annotated[float, _ANY_TEMPERATURE] = 1.0
    """Temperature of "softmax": near 0 the most probable sample decides, at infinity every sample
    counts the same."""
    conclusions: bool = True
    """Let a sample that marks no answer vote for its conclusion (`answers.conclusions`). A capable
    model's conclusions are as good as its marked answers, a small model's are worse (figures are in
    docs/answers.md). The paper reads marked answers alone."""
    rotate_options: bool = False
    """Ask sample k of a question with options in their k-th rotation, and map its letter back, so
    that a liking for a place gives no option more votes; in self-consistency of the test questions
    too. A sample is learnt in the order in which it was asked. Options that name others keep their
    order."""
    ties: Literal["logprob", "scorer"] = "logprob"
    """Tie break: the answer with the larger summed "logprob" of its samples, or with the better
    best "scorer" number and then the larger log-probability."""
    scorer: Annotated[str | None, OBJECT] = None
    """Function "module:function" of a `Question` and a `Sample` that returns a number, higher is
    better. The module is beside the gin file, or installed."""

    @property
    def uses_scorer(self) -> bool:
        """If the vote calls the scorer."""
        return "scorer" in (self.weights, self.ties)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.uses_scorer and not self.scorer:
            raise LmsiError("set Voting.scorer to 'module:function', or vote without a scorer")
        if self.scorer is not None:
            check_scorer("Voting.scorer", self.scorer)


def check_scorer(parameter: str, scorer: str) -> None:
    """Raises LmsiError if a name is not "module:function"."""
    module, _, function = without_folder(scorer).partition(":")
    if not (module and function.isidentifier()):
        raise LmsiError(f"{parameter} = {scorer!r}; write 'module:function'")
