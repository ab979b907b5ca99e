"""The engine: questions in, paths out, with every row busy until a task's questions run out.

The host decides between chunks (`scheduler`), the device decodes chunks (`loop`). What a path says
depends on its question, its task prompt, its key and the compiled shapes, and on nothing else: not
on the order of the questions, the row, the refills, the process count or a restart.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
from jax.sharding import Mesh

from lmsi_jax.decoding.device import Device
from lmsi_jax.decoding.feed import padded
from lmsi_jax.decoding.layout import Decoding, check_fit, prompt_bucket, question_bucket
from lmsi_jax.decoding.loop import prefill_prompt
from lmsi_jax.decoding.prefix import Cache
from lmsi_jax.decoding.sampling import Sampling
from lmsi_jax.decoding.spread import decoding_weights, make_spread
from lmsi_jax.decoding.stops import Stops
from lmsi_jax.decoding.stream import Limit, Settled, Stream
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.params import Params
from lmsi_jax.models.tokenizer import Tokenizer, encode_first
from lmsi_jax.records import Path


@dataclasses.dataclass(frozen=True)
class Stats:
    """What a run has done so far.

    Attributes:
      paths: finished paths.
      tokens: tokens of all paths, finished or not, that count.
      lane_steps: steps times rows, whether they gave such a token or not.
    """

    paths: int = 0
    tokens: int = 0
    lane_steps: int = 0

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(
            self.paths + other.paths, self.tokens + other.tokens, self.lane_steps + other.lane_steps
        )

    @property
    def utilisation(self) -> float:
        """Share of the row steps that gave a token that counts."""
        return self.tokens / self.lane_steps if self.lane_steps else 0.0


OnChunk = Callable[[Stats], None]


class Engine:
    """Samples paths from one set of parameters.

    Args:
      config: the model's shape.
      params: its parameter tree: whole, or where `spread.param_shardings` says.
      tokenizer: the one that the parameters were trained with.
      decoding: the layout.

    Where the mesh spans several processes, all of them make it and run it with the same arguments.

    Raises:
      LmsiError: the tokenizer has more ids than the model has rows, or the mesh cannot be made.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        tokenizer: Tokenizer,
        decoding: Decoding | None = None,
    ):
        if tokenizer.vocab_size > config.vocab_size:
            raise LmsiError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model's vocabulary only "
                f"{config.vocab_size}; name the tokenizer that the checkpoint was trained with"
            )
        self.config = config
        self.tokenizer = tokenizer
        self.decoding = decoding = decoding or Decoding()
        spread = make_spread(decoding.data, decoding.model, decoding.fsdp)
        weights = decoding_weights(config, params, jnp.dtype(decoding.dtype), spread)
        self._device = Device(config, spread, weights, decoding)
        self._prompt: tuple[str, Cache | None] | None = None
        self._found: dict[tuple[str, ...], Stops] = {}

    @property
    def shared(self) -> Mesh | None:
        """The mesh where it spans several processes, else None."""
        return self._device.spread.shared

    @property
    def trace(self) -> int:
        """A checksum of all that has been decoded: the same in all processes of a mesh."""
        return self._device.trace

    def prompt_tokens(self, text: str) -> int:
        """Returns the number of tokens of a text; those of the start are not counted."""
        return len(self.tokenizer.encode(text))

    def run(
        self,
        prefix: str,
        questions: Sequence[tuple[str, str]],
        sampling: Sampling,
        *,
        seed: int,
        round_index: int,
        settled: Settled | None = None,
        limit: Limit | None = None,
        numbers: Sequence[int] | None = None,
        on_chunk: OnChunk | None = None,
    ) -> Iterator[tuple[str, list[Path]]]:
        """Samples the paths of questions that share a task prompt.

        Args:
          prefix: the task prompt ("" for none).
          questions: (uid, text) pairs.
          sampling: how paths are drawn.
          seed: with the round, the uid and the path's index it fixes the noise of a path.
          round_index: the round of self-improvement.
          settled: whether a question needs no more paths, given those it has, in index order;
            asked after every `sampling.early_stop_every` paths where `sampling.early_stop` is set.
          limit: most tokens of path k of a uid; `sampling.max_new_tokens` for all by default.
          numbers: the numbers of the paths to sample, rising, `sampling.paths` of them; 0, 1,
            2, ... by default. The noise of path k is the same whichever others are sampled with it.
          on_chunk: called after every chunk with what has been done.

        Yields:
          (uid, its paths in index order), as questions are completed.

        Raises:
          LmsiError: a prompt and `max_new_tokens` do not fit the model's context; nothing has been
            sampled then.
          ValueError: `numbers` are not `sampling.paths` rising ones.
        """
        if numbers is not None:
            _check_numbers(numbers, sampling.paths)
        encode = self.tokenizer.encode
        prompt = encode_first(self.tokenizer, prefix) if prefix else []
        first = [] if prefix else [*self.tokenizer.start_ids]
        encoded = [[*first, *encode(text)] for _, text in questions]
        lengths = {uid: len(ids) for (uid, _), ids in zip(questions, encoded, strict=True)}
        check_fit(lengths, len(prompt), sampling.max_new_tokens, self.config.max_length)
        buckets: dict[int, list[tuple[str, list[int]]]] = {}
        for (uid, _), ids in zip(questions, encoded, strict=True):
            buckets.setdefault(question_bucket(len(ids) - 1), []).append((uid, ids))
        shared = self._shared(prefix, prompt) if questions else None
        stops = self._stops(sampling.stop)
        noise = (seed, round_index)
        stats = Stats()
        for bucket, some in sorted(buckets.items()):
            stream = Stream(
                *(self._device, stops, shared, some, bucket, sampling, noise),
                *(settled, limit, numbers),
            )
            while not stream.done:
                complete, counts = stream.step()
                stats += Stats(*counts)
                yield from complete
                # Last: whoever leaves here has been given everything that is complete.
                if on_chunk is not None:
                    on_chunk(stats)
            del stream  # its caches, before the next one's

    def _stops(self, strings: tuple[str, ...]) -> Stops:
        """Finds the ends of paths; kept, for it looks at the whole vocabulary."""
        if strings not in self._found:
            self._found[strings] = Stops(self.tokenizer, strings)
        return self._found[strings]

    def _shared(self, prefix: str, tokens: list[int]) -> Cache | None:
        """Caches the task prompt; the last one is kept, for the next run of its task."""
        if self._prompt is None or self._prompt[0] != prefix:
            cache = None
            if tokens:
                batch, lengths = padded([tokens], prompt_bucket(len(tokens)))
                device = self._device
                cache = prefill_prompt(self.config, device.spread, device.weights, batch, lengths)
            self._prompt = prefix, cache
        return self._prompt[1]


def _check_numbers(numbers: Sequence[int], paths: int) -> None:
    """Raises ValueError where they are not so many rising numbers of paths."""
    if len(numbers) != paths or list(numbers) != sorted(set(numbers)) or min(numbers) < 0:
        raise ValueError(f"{list(numbers)} are not {paths} rising numbers of paths")
