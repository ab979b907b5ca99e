"""How long T5X's features must be for a finished run: read off the run, and checked against it.

T5X cuts what is longer than `TASK_FEATURE_LENGTHS`, and a cut prompt has lost its question. Our gin
files take the lengths from `of_questions` and `of_examples`; what a user sets instead is checked.
"""

import functools
from collections.abc import Callable, Mapping

from etils import epath

from lmsi_jax.errors import LmsiError
from lmsi_jax.files import read_json
from lmsi_jax.models.tokenizer import open_tokenizer
from lmsi_jax.prompts import Prompting
from lmsi_jax.stages.evaluate import new_tokens as limit_of
from lmsi_jax.tasks import round_texts
from lmsi_jax.tasks.round_texts import Texts

Lengths = dict[str, int]


def new_tokens(run_dir: epath.PathLike, prompting: Prompting = "cot") -> int:
    """Returns how many new tokens the run's own evaluation lets the model make.

    Raises:
      LmsiError: the run has not begun its evaluation.
    """
    record = epath.Path(run_dir) / "round_0" / "eval" / "config.json"
    if not record.exists():
        raise LmsiError(
            f"{record} is missing; run `lmsi run` into {run_dir}, or set MAX_NEW_TOKENS"
        )
    return limit_of(prompting, read_json(record)["config"]["Sampling"]["max_new_tokens"])


def of_questions(
    run_dir: epath.PathLike,
    tokenizer: str = "embedded",
    prompting: Prompting = "cot",
    max_new_tokens: int = 256,
) -> Lengths:
    """Returns what the longest prompt of a run's questions needs, and its answer."""
    tasks = round_texts.questions(run_dir, prompting).values()
    prompts = [
        size for splits in tasks for own in splits.values() for size in _inputs(own, tokenizer)
    ]
    return {"inputs": max(prompts), "targets": max_new_tokens}


def of_examples(
    run_dir: epath.PathLike,
    round_index: int = 1,
    tokenizer: str = "embedded",
    strong_rate: float = 0.0,
) -> Lengths:
    """Returns what the longest prompt and the longest target of a round's examples need."""
    sources = round_texts.examples(run_dir, round_index, strong_rate).values()
    pairs = [pair for texts, _ in sources for pair in _pairs(texts, tokenizer)]
    return {"inputs": max(a for a, _ in pairs), "targets": max(b for _, b in pairs)}


def check_prompts(name: str, texts: Texts, tokenizer: str, lengths: Mapping[str, int]) -> None:
    """Raises LmsiError where a prompt is longer than T5X lets it be."""
    longest, limit = max(_inputs(texts, tokenizer)), lengths["inputs"]
    if longest > limit:
        raise LmsiError(
            f"{name}: the longest prompt has {longest} tokens, TASK_FEATURE_LENGTHS['inputs'] is "
            f"{limit}; raise it, or leave TASK_FEATURE_LENGTHS unset, then it follows from the run"
        )


def check_examples(name: str, texts: Texts, tokenizer: str, lengths: Mapping[str, int]) -> None:
    """Raises LmsiError where no example at all is within the lengths; T5X would look for ever."""
    pairs = _pairs(texts, tokenizer)
    if not any(a <= lengths["inputs"] and b <= lengths["targets"] for a, b in pairs):
        shortest = min(pairs, key=sum)
        raise LmsiError(
            f"{name}: no example fits TASK_FEATURE_LENGTHS; the shortest needs {shortest[0]} for "
            f"'inputs' and {shortest[1]} for 'targets'. Unset, it follows from the run"
        )


def _pairs(texts: Texts, tokenizer: str) -> list[tuple[int, int]]:
    count = _counter(round_texts.tokenizer_path(tokenizer))
    return list(zip(_inputs(texts, tokenizer), map(count, texts["targets"]), strict=True))


def _inputs(texts: Texts, tokenizer: str) -> list[int]:
    """Tokens of each prompt; prefix and inputs are encoded apart, after the model's start."""
    path = round_texts.tokenizer_path(tokenizer)
    count, start = _counter(path), len(open_tokenizer(path).start_ids)
    both = zip(texts["prefix"], texts["inputs"], strict=True)
    return [start + count(prefix) + count(text) for prefix, text in both]


@functools.cache
def _counter(path: str) -> Callable[[str], int]:
    """What counts the tokens of a text; texts are asked for more than once."""
    encode = open_tokenizer(path).encode
    return functools.cache(lambda text: len(encode(text)))
