"""Turn the vocabulary in a GGUF file's metadata into the files of a Hugging Face tokenizer.

Two kinds are known. "gpt2" is byte-level BPE: its merges are in the file, the expression that
splits a text before merges is named by `tokenizer.ggml.pre`. "llama" is SentencePiece's BPE: it
joins the two neighbours whose whole has the best score, so the merges follow from the scores.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lmsi_jax.errors import LmsiError

_KEY = "tokenizer.ggml."
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"  # SentencePiece's letter for a space

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Splitting:
    """The cutting of a text into words before merges.

    Attributes:
      pattern: a text is cut into its matches; "" for the expression of GPT-2.
      digits: digits are cut off one by one first.
      composed: a text is brought to Unicode's form NFC first.
      whole_words: a match that is a token is not merged from its letters.
      starts: prompts begin with the start token if the file does not say.
    """

    pattern: str = ""
    digits: bool = False
    composed: bool = False
    whole_words: bool = False
    starts: bool = False


_QWEN = _Splitting(pattern=rf"{_WORDS}|\p{{N}}{_REST}", composed=True)
_SPLITTINGS = {
    "llama-bpe": _Splitting(
        pattern=rf"{_WORDS}|\p{{N}}{{1,3}}{_REST}", whole_words=True, starts=True
    ),
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
    "smollm": _Splitting(digits=True),
    "gpt-2": _Splitting(),
}
_UNNAMED = {"qwen2": "qwen2", "qwen3": "qwen2"}  # by architecture, for files without a name

# Chat models end a turn with one of these, whatever the file's one eos_token_id is.
_ENDS = frozenset(
    {
        *("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|end|>", "<|eot_id|>", "<|eom_id|>"),
        *("<end_of_turn>", "<|eot|>", "<eos>", "</s>"),
    }
)


def tokenizer_files(file: str, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Returns the files that Hugging Face's libraries read a tokenizer from, name -> text.

    They are tokenizer.json, tokenizer_config.json, generation_config.json (which tokens end a text)
    and, if the file has one, chat_template.jinja. Tokens that only fill up the table are left out.

    Raises:
      LmsiError: a kind of tokenizer that is not supported, or a key that is missing.
    """
    tokens = metadata.get(f"{_KEY}tokens")
    kind = metadata.get(f"{_KEY}model")
    if tokens is None or kind not in ("gpt2", "llama"):
        raise LmsiError(
            f"{file}: tokenizer.ggml.model = {kind!r} is not supported; supported are 'gpt2' "
            "(byte-level BPE) and 'llama' (SentencePiece)"
        )
    types = metadata.get(f"{_KEY}token_type")
    types = [_NORMAL] * len(tokens) if types is None else types.tolist()
    if len(types) != len(tokens):
        raise LmsiError(
            f"{file} has {len(tokens)} tokens, and types of {len(types)}; download it again"
        )
    named = {
        name: tokens[metadata[f"{_KEY}{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if 0 <= metadata.get(f"{_KEY}{key}_token_id", -1) < len(tokens)
    }
    make = _byte_level if kind == "gpt2" else _sentencepiece
    parts, starts = make(file, metadata, tokens, types, named.get("unk"))
    starts = bool(metadata.get(f"{_KEY}add_bos_token", starts))
    added = [
        _added(number, token, kind != _USER_DEFINED)
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    ids = {token: number for number, token in reversed(list(enumerate(tokens)))}
    start = named.get("bos") if starts else None
    if starts and start is None:
        raise LmsiError(f"{file}: prompts begin with a start token, but bos_token_id is missing")
    spec = {
        **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": added},
        "post_processor": None if start is None else _start_with(start, ids[start]),
        **parts,
    }
    settings = {
        **{"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False},
        **{"add_bos_token": starts, **{f"{name}_token": token for name, token in named.items()}},
    }
    files = {
        "tokenizer.json": json.dumps(spec, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(settings, ensure_ascii=False, indent=2),
        "generation_config.json": json.dumps({"eos_token_id": _ends(metadata, tokens, types)}),
    }
    if template := metadata.get("tokenizer.chat_template"):
        files["chat_template.jinja"] = template
    return files


def _added(number: int, token: str, special: bool) -> dict[str, Any]:
    entry = {"id": number, "content": token, "special": special}
    return entry | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def _ends(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> list[int]:
    """Returns the ids that end a text, the file's eos_token_id first."""
    named = [metadata.get(f"{_KEY}{name}_token_id") for name in ("eos", "eot", "eom")]
    known = [
        number
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == _CONTROL and token in _ENDS
    ]
    ids = (number for number in (*named, *known) if number is not None and number < len(tokens))
    return list(dict.fromkeys(ids))


def _start_with(token: str, number: int) -> dict[str, Any]:
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, special, second],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def _vocabulary(tokens: Sequence[str], types: Sequence[int]) -> dict[str, int]:
    """Returns token -> its first id, without those that only fill up the table."""
    ids: dict[str, int] = {}
    for number, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind != _UNUSED:
            ids.setdefault(token, number)
    return ids


def _byte_level(
    file: str,
    metadata: Mapping[str, Any],
    tokens: Sequence[str],
    types: Sequence[int],
    unknown: str | None,
) -> tuple[dict[str, Any], bool]:
    """Returns the parts of a byte-level tokenizer.json, and if prompts have a start by default."""
    del unknown  # every byte has a token
    name = metadata.get(f"{_KEY}pre") or _UNNAMED.get(metadata["general.architecture"])
    if name not in _SPLITTINGS:
        raise LmsiError(
            f"{file}: tokenizer.ggml.pre = {name!r} is not supported; supported are "
            f"{', '.join(_SPLITTINGS)}. Import the model's Hugging Face folder instead"
        )
    merges = metadata.get(f"{_KEY}merges")
    if merges is None:
        raise LmsiError(f"{file} has no tokenizer.ggml.merges; download it again")
    splitting = _SPLITTINGS[name]
    steps: list[dict[str, Any]] = []
    if splitting.digits:
        steps.append({"type": "Digits", "individual_digits": True})
    if splitting.pattern:
        pattern = {"Regex": splitting.pattern}
        steps.append({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    steps.append(letters | {"use_regex": not splitting.pattern})
    parts = {
        "normalizer": {"type": "NFC"} if splitting.composed else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": letters | {"use_regex": True},
        "model": {
            **{"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False},
            **{"byte_fallback": False, "ignore_merges": splitting.whole_words},
            "vocab": _vocabulary(tokens, types),
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }
    return parts, splitting.starts


def _sentencepiece(
    file: str,
    metadata: Mapping[str, Any],
    tokens: Sequence[str],
    types: Sequence[int],
    unknown: str | None,
) -> tuple[dict[str, Any], bool]:
    """Returns the parts of a tokenizer.json for SentencePiece's BPE; prompts have a start."""
    scores = metadata.get(f"{_KEY}scores")
    if scores is None or len(scores) != len(tokens):
        raise LmsiError(f"{file} has no score for each token; download it again")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    normalizer: dict[str, Any] = replace
    if metadata.get(f"{_KEY}add_space_prefix", True):
        first = {"type": "Prepend", "prepend": _SPACE}
        normalizer = {"type": "Sequence", "normalizers": [first, replace]}
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    parts = {
        "normalizer": normalizer,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            **{"type": "BPE", "dropout": None, "unk_token": unknown, "fuse_unk": True},
            **{"byte_fallback": _BYTE in types, "ignore_merges": False},
            "vocab": _vocabulary(tokens, types),
            "merges": _merges(tokens, types, scores.tolist()),
        },
    }
    return parts, True


def _merges(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """Returns the pairs of pieces that are a piece together, those with the best whole first.

    SentencePiece joins any two neighbours whose whole is a piece, so each way to cut a piece in two
    is a merge.
    """
    ids = {
        token: number
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == _NORMAL
    }
    ranked = []
    for token, number in ids.items():
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[number], number, left, right))
    ranked.sort()
    return [(tokens[left], tokens[right]) for _, _, left, right in ranked]
