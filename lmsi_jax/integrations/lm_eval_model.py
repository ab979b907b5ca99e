"""A model of ours for lm-evaluation-harness: generate_until, loglikelihood, loglikelihood_rolling.

    python -m lmsi_jax.integrations.lm_eval_model --model lmsi \\
        --model_args pretrained=runs/quickstart --tasks gsm8k

is `lm_eval` with one more model, "lmsi". The harness knows the models of its own table and those
that are registered before it parses its arguments (`lm_eval.api.registry`); it looks for no entry
points (version 0.4.13), so this module registers and hands over. `register` does so in Python.

Texts are encoded as the model's Hugging Face tokenizer does, control tokens written in them
included. Log-likelihoods share what many contexts begin with, such as few-shot examples.
"""

import collections
import functools
import itertools
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from lmsi_jax import api
from lmsi_jax.config import Chat, Decoding, Sampling
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.chat_prompts import read_template
from lmsi_jax.interop.chat_template import ChatTemplate, Turn, read_tokens
from lmsi_jax.models.tokenizers import encode_text
from lmsi_jax.records import Text
from lmsi_jax.rollout.requests import Request

if TYPE_CHECKING:
    from lmsi_jax.models.params import Params

Ids = list[int]
Scored = tuple[float, bool]
"""The log-probability of a continuation, in nats, and if greedy decoding gives it."""

_TOKENS_AT_ONCE = 2048  # of a batch that is scored
_SHORTEST = 256  # padded length of the rows of a batch, which several short ones share
_SHARED = 32  # least tokens of a prefix that is computed once
_MANY = 1024  # least own tokens of the rows that share one
_SEPARATOR = "\n\n"
_NEW_TOKENS = 256  # the harness's default of max_gen_toks


class Scorer:
    """A model that scores and continues texts; all of the adapter but the harness's class.

    Args:
      model: the model.
      slots: samples at a time.
      max_length: most tokens of a text; None: the model's context.
      dtype: of the weights in computation, "float32" or "bfloat16".
      seed: of sampling, if a task asks for it.
    """

    def __init__(
        self,
        model: api.Model,
        *,
        slots: int = 32,
        max_length: int | None = None,
        dtype: str = "float32",
        seed: int = 0,
    ):
        if dtype not in ("float32", "bfloat16"):
            raise LmsiError(f"dtype={dtype}: use float32 or bfloat16")
        self.model, self.dtype, self._seed = model, dtype, seed
        self.max_length = max_length or model.config.max_length
        self._decoding = Decoding(
            slots=slots, dtype="bfloat16" if dtype != "float32" else "float32"
        )
        controls = sorted(model.tokenizer.controls, key=len, reverse=True)
        self._controls = re.compile("|".join(map(re.escape, controls))) if controls else None

    @functools.cached_property
    def prefix_id(self) -> int:
        """The token before a text without context: the start token, or else the end token."""
        place = epath.Path(self.model.tokenizer_path)
        _, tokens = read_tokens(place if place.is_dir() else place.parent)
        start = self.model.tokenizer.controls.get(tokens.get("bos_token", ""))
        if start is not None:
            return start.id
        starts = self.model.tokenizer.start_ids
        return starts[0] if starts else self.model.tokenizer.eos_id

    def text(self, string: str) -> Text:
        """Returns a string with its control tokens apart."""
        if self._controls is None:
            return string
        pieces: list[str] = []
        end = 0
        for match in self._controls.finditer(string):
            pieces += [string[end : match.start()], match[0]]
            end = match.end()
        return (*pieces, string[end:]) if pieces else string

    def encode(self, string: str, start: bool = True) -> Ids:
        """Returns the ids of a string, after the start token if the tokenizer adds one."""
        text, starts = self.text(string), list(self.model.tokenizer.start_ids)
        if isinstance(text, str):
            return [*(starts if start else ()), *self.model.tokenizer.encode(text)]
        ids = encode_text(self.model.tokenizer, text)
        return ids if not start or ids[: len(starts)] == starts else [*starts, *ids]

    def likelihoods(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[Scored]:
        """Returns the log-likelihood of each continuation after its context, as ids."""
        from lmsi_jax.training import packing, scoring

        rows = self._rows(pairs)
        by_shape: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
        for number, row in enumerate(rows):
            prefix = -(-len(row.prefix) // 128) * 128 or 8
            by_shape[_padded(len(row.tokens), self.max_length), prefix].append(number)
        scores: dict[int, Scored] = {}
        for (length, prefix), numbers in sorted(by_shape.items()):
            count = max(1, _TOKENS_AT_ONCE // length)
            shape = packing.Shape(microbatches=1, rows=count, length=length, prefix_length=prefix)
            chosen = [rows[number] for number in numbers]
            found = scoring.likelihoods(self.model.config, self._params, chosen, shape)
            scores |= dict(zip(numbers, found, strict=True))
        return [scores[number] for number in range(len(rows))]

    def generate(self, strings: Sequence[str], asked: Mapping[str, Any]) -> list[str]:
        """Returns a continuation of each string.

        Args:
          strings: the prompts; those too long for the context lose their beginning.
          asked: the harness's generation settings, "until" and "max_gen_toks" among them.
        """
        sampling = _sampling(asked)
        room = self.max_length - sampling.max_new_tokens
        if room < 1:
            raise LmsiError(
                f"max_gen_toks={sampling.max_new_tokens} leaves no room for a prompt in the "
                f"context of {self.max_length} tokens; lower it with --gen_kwargs"
            )
        prompts = []
        for string in strings:
            ids = self.encode(string)
            cut = string if len(ids) <= room else self.model.tokenizer.decode(ids[-room + 1 :])
            prompts.append(cut)
        prefix = self._shared_text(prompts)
        requests = [
            Request(
                uid=str(number), prefix=prefix, text=self._rest(prompt, prefix), sampling=sampling
            )
            for number, prompt in enumerate(prompts)
        ]
        texts = [""] * len(strings)
        for response in self._engine.generate(requests, seed=self._seed, round_index=0):
            texts[response.number] = response.samples[0].text
        return texts

    @functools.cached_property
    def _engine(self) -> Any:
        return api.engine(self.model, self._decoding)

    @functools.cached_property
    def _params(self) -> "Params":
        from lmsi_jax.models.params import cast_params

        return cast_params(self.model.params, self.dtype)

    def _rows(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[Any]:
        """Returns the rows to score, with shared prefixes if they save work."""
        from lmsi_jax.training.packing import Row

        whole = []
        for context, continuation in pairs:
            ids = (context + continuation)[-(self.max_length + 1) :]
            whole.append((ids, len(ids) - min(len(continuation), len(ids) - 1)))
        groups: dict[tuple[int, ...], list[int]] = collections.defaultdict(list)
        for number, (ids, _) in enumerate(whole):
            groups[tuple(ids[:_SHARED])].append(number)
        shared = [0] * len(whole)
        for numbers in groups.values():
            contexts = [whole[n][0][: whole[n][1] - 1] for n in numbers]
            size = len(os.path.commonprefix(contexts))
            own = sum(len(whole[n][0]) - size for n in numbers)
            if size >= _SHARED and own >= _MANY:
                for n in numbers:
                    shared[n] = size
        return [
            Row(
                prefix=tuple(ids[:size]),
                tokens=ids[size:],
                weights=[0.0] * (start - size) + [1.0] * (len(ids) - start),
            )
            for (ids, start), size in zip(whole, shared, strict=True)
        ]

    def _shared_text(self, prompts: Sequence[str]) -> str:
        """Returns what all prompts begin with, up to a blank line; "" if ids would change."""
        common = os.path.commonprefix(list(prompts)) if len(prompts) > 1 else ""
        prefix = (
            common[: common.rfind(_SEPARATOR) + len(_SEPARATOR)] if _SEPARATOR in common else ""
        )
        same = prefix and all(
            self.encode(prompt) == self._parts(prefix, self._rest(prompt, prefix))
            for prompt in prompts
        )
        return prefix if same else ""

    def _rest(self, prompt: str, prefix: str) -> Text:
        return self.text(prompt[len(prefix) :])

    def _parts(self, prefix: str, rest: Text) -> Ids:
        if not isinstance(self.text(prefix), str):
            return []  # a chat's turns are not taken apart
        tokenizer = self.model.tokenizer
        return [*encode_text(tokenizer, prefix), *encode_text(tokenizer, rest, prefix)]


def _padded(length: int, most: int) -> int:
    """Returns what a row is padded to: one of few lengths, so that few programs are compiled."""
    size = _SHORTEST
    while size < length:
        size *= 4
    return max(length, min(size, most + 1))


def _sampling(asked: Mapping[str, Any]) -> Sampling:
    """Returns the sampling that the harness's generation settings ask for."""
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    tokens = next((asked[name] for name in names if asked.get(name) is not None), _NEW_TOKENS)
    until = asked.get("until") or ()
    temperature = float(asked.get("temperature") or 0.0)
    if asked.get("do_sample") is False:
        temperature = 0.0
    elif asked.get("do_sample") and not temperature:
        temperature = 1.0
    stops = (until,) if isinstance(until, str) else tuple(until)
    return Sampling(
        num_samples=1,
        temperature=temperature,
        top_k=int(asked.get("top_k") or 0) if temperature else 0,
        top_p=float(asked.get("top_p") or 1.0) if temperature else 1.0,
        min_p=float(asked.get("min_p") or 0.0) if temperature else 0.0,
        max_new_tokens=int(tokens),
        stop=tuple(filter(None, stops)),
    )


def find_model(folder: str) -> str:
    """Returns the folder with the weights: of a run, that of its last trained round.

    Args:
      folder: "embedded", a folder of `lmsi import-hf`, a run, or its `round_R/train`.

    Raises:
      LmsiError: there is no such folder.
    """
    place = epath.Path(folder)
    if folder == "embedded" or (place / "model.gin").exists():
        return folder
    if not place.exists():
        raise LmsiError(
            f"there is no folder {folder}; name one that `lmsi import-hf` made, a run, or its "
            "round_R/train"
        )
    trained = [
        (int(one.name.removeprefix("round_")), one / "train")
        for one in place.iterdir()
        if re.fullmatch(r"round_\d+", one.name) and (one / "train" / "stage.json").exists()
    ]
    return os.fspath(max(trained)[1]) if trained else folder


@functools.cache
def harness_class() -> type:
    """Returns the harness's class of our models.

    Raises:
      LmsiError: lm_eval is not installed.
    """
    try:
        from lm_eval import utils
        from lm_eval.api.model import TemplateLM
    except ImportError:
        raise LmsiError(
            "lm-evaluation-harness is not installed: pip install 'lmsi_jax[eval]'"
        ) from None

    class LmsiLM(TemplateLM):
        """A model of lmsi_jax; `--model_args` are the arguments of `__init__`."""

        def __init__(
            self,
            pretrained: str = "embedded",
            batch_size: int | str | None = None,
            max_batch_size: int | None = None,
            device: str | None = None,
            max_length: int | None = None,
            dtype: str = "float32",
            seed: int = 0,
            allow_imports: bool = False,
        ):
            """Loads the model.

            Args:
              pretrained: see `find_model`.
              batch_size: samples at a time; 1, the harness's default, and "auto" mean 32.
              max_batch_size, device: not used; JAX's devices are.
              max_length: most tokens of a text; None: the model's context.
              dtype: of the weights in computation.
              seed: of sampling.
              allow_imports: runs the modules that the run's gin file imports.
            """
            super().__init__()
            size = int(batch_size or 1) if str(batch_size).isdecimal() else 1
            model = api.load(find_model(pretrained), allow_imports=bool(allow_imports))
            self.scorer = Scorer(
                model,
                slots=size if size > 1 else 32,
                max_length=max_length,
                dtype=dtype,
                seed=int(seed),
            )
            self.max_length = self.scorer.max_length

        @property
        def eot_token_id(self) -> int:
            return self.scorer.model.tokenizer.eos_id

        @property
        def prefix_token_id(self) -> int:
            return self.scorer.prefix_id

        @property
        def tokenizer_name(self) -> str:
            return self.scorer.model.tokenizer.fingerprint

        def get_model_info(self) -> dict[str, Any]:
            """Returns what the harness records of the model."""
            return {
                "model_num_parameters": self.scorer.model.config.parameter_count,
                "model_dtype": self.scorer.dtype,
            }

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
        ) -> Ids:
            return self.scorer.encode(string, start=add_special_tokens is not False)

        def _loglikelihood_tokens(
            self, requests: list[tuple[tuple[str, str], Ids, Ids]], **kwargs: Any
        ) -> list[Scored]:
            scores = self.scorer.likelihoods([(one, other) for _, one, other in requests])
            for (texts, _, _), score in zip(requests, scores, strict=True):
                self.cache_hook.add_partial("loglikelihood", texts, score)
            return scores

        def loglikelihood_rolling(
            self, requests: list[Any], disable_tqdm: bool = False
        ) -> list[float]:
            windows = []
            for number, request in enumerate(requests):
                (text,) = request.args
                for window in utils.get_rolling_token_windows(
                    token_list=self.tok_encode(text),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                ):
                    windows.append((number, utils.make_disjoint_window(window)))
            scores = self.scorer.likelihoods([(list(a), list(b)) for _, (a, b) in windows])
            totals = [0.0] * len(requests)
            for (number, _), (score, _) in zip(windows, scores, strict=True):
                totals[number] += score
            return totals

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            texts = [""] * len(requests)
            order = sorted(range(len(requests)), key=lambda n: str(requests[n].args[1]))
            for _, some in itertools.groupby(order, key=lambda n: str(requests[n].args[1])):
                numbers = list(some)
                strings = [requests[number].args[0] for number in numbers]
                found = self.scorer.generate(strings, requests[numbers[0]].args[1])
                for number, text in zip(numbers, found, strict=True):
                    texts[number] = text
                    self.cache_hook.add_partial("generate_until", requests[number].args, text)
            return texts

        @property
        def _template(self) -> ChatTemplate:
            return read_template(Chat(), self.scorer.model.tokenizer_path)

        def chat_template(self, chat_template: bool | str = False) -> str:
            return self._template.source if chat_template else ""

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            turns = [Turn(role=one["role"], text=one["content"]) for one in chat_history]  # type: ignore[arg-type]
            return self._template.render(turns, add_generation_prompt).text

    return LmsiLM


def register() -> None:
    """Registers the model "lmsi" with the harness in this process.

    Raises:
      LmsiError: lm_eval is not installed.
    """
    cls = harness_class()
    from lm_eval.api.registry import register_model

    register_model("lmsi")(cls)


def main() -> None:
    """Runs lm_eval's command line with our model registered."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except LmsiError as error:
        print(f"lmsi: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
