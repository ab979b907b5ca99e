"""Turn the metadata of a GGUF file into the config.json and tokenizer of a Hugging Face model.

Every key of the architecture is read here or known to change nothing; the others are refused by
name, for a network that is almost the right one writes almost right text.

Two kinds of tokenizer are known. "gpt2" is byte-level BPE: its merges are in the file, the
expression that splits a text before merges is named by `tokenizer.ggml.pre`. "llama" is
SentencePiece's BPE: it joins the two neighbours whose whole has the best score, so the merges
follow from the scores.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmsi_jax.errors import LmsiError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """The conventions of one architecture in GGUF files.

    Attributes:
      model_type: in config.json.
      class_name: in transformers.
      permuted: rows of the query's and the key's heads are stored for rotary pairs of neighbours.
      norm_plus_one: norms are stored with the 1 that the model adds to its weights.
      four_norms: a layer also normalises the outputs of attention and the MLP.
    """

    model_type: str
    class_name: str
    permuted: bool = False
    norm_plus_one: bool = False
    four_norms: bool = False


ARCHITECTURES = {
    "llama": Architecture(model_type="llama", class_name="LlamaForCausalLM", permuted=True),
    "qwen2": Architecture(model_type="qwen2", class_name="Qwen2ForCausalLM"),
    "qwen3": Architecture(model_type="qwen3", class_name="Qwen3ForCausalLM"),
    "gemma2": Architecture(
        model_type="gemma2", class_name="Gemma2ForCausalLM", norm_plus_one=True, four_norms=True
    ),
    "gemma3": Architecture(
        model_type="gemma3_text",
        class_name="Gemma3ForCausalLM",
        norm_plus_one=True,
        four_norms=True,
    ),
}
# Layers whose scores are divided by the root of hidden_size / heads instead of head_dim's: the 27B
# models. The files do not say it; llama.cpp decides by the number of layers too.
_WIDE_QUERIES = {"gemma2": 46, "gemma3": 62}
# Every which layer sees all tokens.
_FULL_EVERY = {"gemma2": 2, "gemma3": 6}
# Llama 3.1 to 3.3's rope_scaling; files hold only the divisors of the frequencies.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_ORIGINAL = 8192

_READ = frozenset(
    {
        *("block_count", "context_length", "embedding_length", "feed_forward_length"),
        *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
        *("attention.value_length", "attention.layer_norm_rms_epsilon", "vocab_size"),
        *("attention.sliding_window", "attention.sliding_window_pattern"),
        *("attn_logit_softcapping", "final_logit_softcapping"),
        *("rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "rope.scale_linear"),
        *("rope.dimension_count_swa", "attention.key_length_swa", "attention.value_length_swa"),
        *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"),
        *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.attn_factor"),
    }
)
_IDLE = frozenset({"rope.scaling.finetuned", "tensor_data_layout", "attention.causal"})


def architecture(file: str, metadata: Mapping[str, Any]) -> Architecture:
    """Returns the conventions of a file.

    Raises:
      LmsiError: its architecture is not supported.
    """
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise LmsiError(
            f"{file}: general.architecture = {name!r} is not supported; supported are "
            f"{', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def config_json(
    file: str,
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    rope_divisors: np.ndarray | None = None,
) -> dict[str, Any]:
    """Returns the config.json of the model.

    Args:
      file: its name, for errors.
      metadata: its key-value pairs.
      shapes: the tensors' shapes by ggml's names, rows first.
      rope_divisors: the tensor `rope_freqs.weight`, [head_dim / 2], if the file has one.

    Raises:
      LmsiError: an architecture, a feature or a value that is not supported, or a key that is
        missing; it names the key.
    """
    family = architecture(file, metadata)
    get = _Reader(file, metadata)
    if "token_embd.weight" not in shapes:
        raise LmsiError(f"{file} has no tensor 'token_embd.weight'; {get.again}")
    heads, width = get.whole("attention.head_count"), get.whole("embedding_length")
    head_dim = get.whole("attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        for suffix in ("", "_swa"):
            get.check(key + suffix, head_dim)
    get.check("attention.key_length_swa", head_dim)
    context = get.whole("context_length")
    config = {
        "architectures": [family.class_name],
        "model_type": family.model_type,
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": width,
        "intermediate_size": get.whole("feed_forward_length"),
        "num_hidden_layers": get.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get.whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": context,
        "rms_norm_eps": get.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": get.real("rope.freq_base", 10000.0),
        "rope_scaling": _scaling(get, context, rope_divisors),
        "tie_word_embeddings": "output.weight" not in shapes,
        **_windows(get, family, context),
        **_activation(get, family, heads, width, head_dim),
    }
    if family.model_type in ("llama", "qwen3") and "blk.0.attn_q.bias" in shapes:
        config["attention_bias"] = True
    if family.model_type == "llama" and "blk.0.ffn_gate.bias" in shapes:
        config["mlp_bias"] = True
    for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if token is not None:
            config[f"{key}_token_id"] = token
    return config


class _Reader:
    """The architecture's keys, without its name before them."""

    again = "take a file that was converted by a current llama.cpp"

    def __init__(self, file: str, metadata: Mapping[str, Any]):
        self.file, self.architecture = file, metadata["general.architecture"]
        begin = f"{self.architecture}."
        self.values = {
            key.removeprefix(begin): value
            for key, value in metadata.items()
            if key.startswith(begin)
        }
        odd = sorted(
            f"{begin}{key} = {_shown(value)}"
            for key, value in self.values.items()
            if key not in _READ | _IDLE and not _neutral(value)
        )
        if odd:
            raise LmsiError(f"{file}: {', '.join(odd)} is not supported")

    def __call__(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def whole(self, key: str, default: int | None = None) -> int:
        """Returns a whole number above 0; a list by layer if all of it is the same."""
        value = self.values.get(key, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if type(value) is not int or value < 1:
            raise self.error(key, value, "a whole number above 0, the same in all layers")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """Returns a number above 0."""
        value = self.values.get(key, default)
        if not isinstance(value, float) or not 0 < value < float("inf"):
            raise self.error(key, value, "a number above 0")
        return value

    def check(self, key: str, only: Any) -> None:
        """Refuses a value other than the one that is supported."""
        value = self.values.get(key, only)
        if value != only:
            raise self.error(key, value, f"{only!r}")

    def error(self, key: str, value: Any, supported: str) -> LmsiError:
        """Returns the error for a value."""
        return LmsiError(
            f"{self.file}: {self.architecture}.{key} = {_shown(value)}; supported is {supported}"
            + (f": {self.again}" if value is None else "")
        )


def _shown(value: Any) -> str:
    return repr(value.tolist() if isinstance(value, np.ndarray) else value)[:60]


def _neutral(value: Any) -> bool:
    return not value.any() if isinstance(value, np.ndarray) else not value


def _windows(get: _Reader, family: Architecture, context: int) -> dict[str, Any]:
    """Returns the keys of the sliding windows."""
    window = get("attention.sliding_window", 0)
    if family.model_type == "llama" and 0 < window < context:
        return {
            "model_type": "mistral",
            "architectures": ["MistralForCausalLM"],
            "sliding_window": window,
        }
    if not family.four_norms:
        if 0 < window < context:
            raise get.error("attention.sliding_window", window, "none")
        return {}
    every = get("attention.sliding_window_pattern", _FULL_EVERY[get.architecture])
    layers = get.whole("block_count")
    if isinstance(every, np.ndarray):
        local = [bool(each) for each in every]
    else:
        local = [bool((layer + 1) % every) for layer in range(layers)]
    kinds = ["sliding_attention" if each else "full_attention" for each in local]
    return {"sliding_window": get.whole("attention.sliding_window", 4096), "layer_types": kinds}


def _activation(
    get: _Reader, family: Architecture, heads: int, width: int, head_dim: int
) -> dict[str, Any]:
    """Returns the keys of the activation, and those that Gemma alone has."""
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    if family.model_type != "gemma2":
        for key in caps:
            if get(key):
                raise get.error(key, get(key), "none")
    if not family.four_norms:
        return {"hidden_act": "silu"}
    wide = _WIDE_QUERIES[get.architecture] == get.whole("block_count")
    keys: dict[str, Any] = {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": width // heads if wide else head_dim,
    }
    if family.model_type == "gemma2":
        return keys | {key: get.real(key, default) for key, default in caps.items()}
    return keys | {"rope_local_base_freq": get.real("rope.freq_base_swa", 10000.0)}


def _scaling(get: _Reader, context: int, divisors: np.ndarray | None) -> dict[str, Any] | None:
    """Returns `rope_scaling`."""
    kind = get("rope.scaling.type", "linear" if get("rope.scale_linear") else "none")
    if divisors is not None:
        if kind != "none":
            raise get.error("rope.scaling.type", kind, "'none' beside the tensor rope_freqs.weight")
        return _llama3(get, divisors)
    if kind == "none":
        return None
    factor = get.real("rope.scaling.factor", get("rope.scale_linear"))
    get.check("rope.scaling.attn_factor", 1.0)
    if kind == "linear":
        return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        scaling = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": get.whole(
                "rope.scaling.original_context_length", context
            ),
        }
        for key in ("beta_fast", "beta_slow"):
            if get(f"rope.scaling.yarn_{key}") is not None:
                scaling[key] = get.real(f"rope.scaling.yarn_{key}")
        return scaling
    raise get.error("rope.scaling.type", kind, "'none', 'linear' or 'yarn'")


def _llama3(get: _Reader, divisors: np.ndarray) -> dict[str, Any]:
    """Returns the llama3 scaling whose divisors of the rotary frequencies these are.

    Raises:
      LmsiError: they are of no scaling with Llama 3's constants.
    """
    theta, size = get.real("rope.freq_base", 10000.0), 2 * divisors.size
    wavelengths = 2 * np.pi * theta ** (np.arange(0, size, 2) / size)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    factor = float(divisors.max())
    share = np.clip((_LLAMA3_ORIGINAL / wavelengths - low) / (high - low), 0, 1)
    if not np.allclose(1 / ((1 - share) / factor + share), divisors, rtol=1e-4):
        raise LmsiError(
            f"{get.file}: rope_freqs.weight is not the scaling of Llama 3.1, which is the only one "
            "supported in a tensor"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        **_LLAMA3,
        "original_max_position_embeddings": _LLAMA3_ORIGINAL,
    }


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
        "post_processor": None if start is None else start_with(start, ids[start]),
        **parts,
    }
    settings = {
        **{"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False},
        # If it is false it is left out: llama.cpp's converter would write its key a second time.
        **({"add_bos_token": True} if starts else {}),
        **{f"{name}_token": token for name, token in named.items()},
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


def start_with(token: str, number: int) -> dict[str, Any]:
    """Returns the post-processor of a tokenizer.json that puts a token before each text."""
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
    cut = [merge.split(" ", 1) for merge in merges]
    return byte_level_parts(name, _vocabulary(tokens, types), cut), splitting.starts


def byte_level_parts(
    name: str,
    vocabulary: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    prefix_space: bool = False,
) -> dict[str, Any]:
    """Returns the parts of a tokenizer.json for byte-level BPE (Radford et al. 2019).

    Args:
      name: how texts are cut into words, one of llama.cpp's names.
      vocabulary: token -> id.
      merges: pairs of tokens, the first one first.
      prefix_space: a space is put before a text that does not begin with one.
    """
    splitting = _SPLITTINGS[name]
    steps: list[dict[str, Any]] = []
    if splitting.digits:
        steps.append({"type": "Digits", "individual_digits": True})
    if splitting.pattern:
        pattern = {"Regex": splitting.pattern}
        steps.append({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
    letters = {"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": False}
    steps.append(letters | {"use_regex": not splitting.pattern})
    return {
        "normalizer": {"type": "NFC"} if splitting.composed else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": letters | {"use_regex": True},
        "model": {
            **{"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False},
            **{"byte_fallback": False, "ignore_merges": splitting.whole_words},
            "vocab": vocabulary,
            "merges": merges,
        },
    }


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
