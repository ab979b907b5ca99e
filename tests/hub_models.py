"""Micro models of each family by transformers, with trained tokenizers, in folders as the hub's."""

import json

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="wants the extra [hf]")
tokenizers = pytest.importorskip("tokenizers", reason="wants the extra [hf]")
torch = pytest.importorskip("torch", reason="wants torch")
transformers = pytest.importorskip("transformers", reason="wants Hugging Face's transformers")
Tokenizer, models, decoders = tokenizers.Tokenizer, tokenizers.models, tokenizers.decoders
normalizers, pre_tokenizers = tokenizers.normalizers, tokenizers.pre_tokenizers
processors = tokenizers.processors

_LINES = [
    "Q: Ann has 3 pens and 4 cups. How many things does Ann have?",
    "A: 3 + 4 = 7. The answer is 7.\n\n",
    "Premise: Ben has some hats! Yes or no? (a) 1 (b) 2",
    "Let's think step by step. It is not possible to tell; it's 12,345.67 \u20ac \u96ea na\u00efve",
]
# What the families' tokenizers split text by, before merges: digits by three or one by one.
_LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN = _LLAMA.replace(r"\p{N}{1,3}", r"\p{N}")
SPECIALS = {
    "llama": ("<|begin_of_text|>", "<|end_of_text|>"),
    "qwen": (None, "<|endoftext|>"),
    "gemma": ("<bos>", "<eos>"),
    "llama2": ("<bos>", "<eos>"),
}
VOCABULARY = 384

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
_LINEAR = {"rope_type": "linear", "factor": 8.0}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 9}

# Windows are shorter than the sequences of tests. Of the stretched frequencies some stay, some are
# divided, and of Llama 3's, and of YaRN's with heads of 16, one is interpolated.
# name: (transformers' configuration class, its arguments, the tokenizer's kind)
MODELS = {
    "llama": (
        "LlamaConfig",
        {
            **{"rope_theta": 5e5, "rope_scaling": _LLAMA3_ROPE, "head_dim": 16},
            **{"rms_norm_eps": 1e-5, "tie_word_embeddings": False},
        },
        "llama",
    ),
    "llama-biased": (
        "LlamaConfig",
        {
            **{"attention_bias": True, "mlp_bias": True, "head_dim": 16},
            **{"rope_theta": 1e4, "rope_scaling": _YARN, "tie_word_embeddings": True},
        },
        "llama",
    ),
    "qwen2.5": (
        "Qwen2Config",
        {"rope_theta": 1e6, "tie_word_embeddings": False, "rope_scaling": _YARN},
        "qwen",
    ),
    "qwen2.5-windows": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
        "qwen",
    ),
    "qwen3": (
        "Qwen3Config",
        {"head_dim": 16, "rope_theta": 1e6, "tie_word_embeddings": True},
        "qwen",
    ),
    "gemma": ("GemmaConfig", {"head_dim": 16, "num_key_value_heads": 1}, "gemma"),
    "mistral": (
        "MistralConfig",
        {"head_dim": 16, "rope_theta": 1e4, "sliding_window": 9},
        "llama",
    ),
    "smollm3": (
        "SmolLM3Config",
        {
            **{"num_hidden_layers": 5, "no_rope_layer_interval": 2, "rope_theta": 5e6},
            **{"use_sliding_window": True, "sliding_window": 9, "num_key_value_heads": 2},
            "tie_word_embeddings": False,
        },
        "llama",
    ),
    "olmo2": ("Olmo2Config", {"rope_theta": 5e5}, "llama"),
    "olmo3": (
        "Olmo3Config",
        {"num_hidden_layers": 5, "sliding_window": 9, "rope_scaling": _YARN, "rope_theta": 5e5},
        "llama",
    ),
    "granite": (
        "GraniteConfig",
        {
            **{"embedding_multiplier": 1.5, "residual_multiplier": 0.7, "logits_scaling": 2.5},
            **{"attention_multiplier": 0.3, "tie_word_embeddings": False, "rope_theta": 1e4},
        },
        "llama",
    ),
    "phi3": ("Phi3Config", {"rope_theta": 1e4, "sliding_window": 9}, "llama"),
    "phi4": (
        "Phi3Config",
        {
            **{"hidden_size": 64, "max_position_embeddings": 4096, "rope_theta": 1e4},
            **{"original_max_position_embeddings": 512, "tie_word_embeddings": True},
            "rope_scaling": {
                **{"rope_type": "longrope", "partial_rotary_factor": 0.75},
                **{"short_factor": [1.0, 1.1, 1.5, 1.9, 2.0, 2.5]},
                **{"long_factor": [2.0, 3.0, 5.0, 9.0, 20.0, 30.0]},
            },
        },
        "llama",
    ),
    "gemma2": (
        "Gemma2Config",
        {**_GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
        "gemma",
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {**_GEMMA, "rope_scaling": _LINEAR, "num_hidden_layers": 7},
        "gemma",
    ),
}


def byte_level(kind):
    """Llama 3's or Qwen's tokenizer, with another vocabulary: its id 0 is "!"."""
    made = Tokenizer(models.BPE())
    if kind == "qwen":
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_QWEN if kind == "qwen" else _LLAMA), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_LINES * 5, trainer)
    start, end = SPECIALS[kind]
    made.add_special_tokens([name for name in (start, end, "<|pad|>") if name])
    if start:
        made.post_processor = processors.TemplateProcessing(
            single=f"{start} $A",
            pair=f"{start} $A {start} $B",
            special_tokens=[(start, made.token_to_id(start))],
        )
    return made


def gemma():
    """Gemma's tokenizer, with another vocabulary: pieces, then bytes."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", "\u2581")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"]
        + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    made.train_from_iterator([line.translate(_PLAIN) for line in _LINES] * 5, trainer)
    spec = json.loads(made.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if not t["content"].startswith("<0x")]
    made = Tokenizer.from_str(json.dumps(spec))
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A <bos> $B",
        special_tokens=[("<bos>", 2)],
    )
    return made


# Characters that have no piece, so that they are written in bytes.
_PLAIN = {ord(letter): None for letter in "\u20ac\u96ea\u00ef"}


def llama2():
    """Llama 2's tokenizer, with another vocabulary: it puts a space before a text."""
    spec = json.loads(gemma().to_str())
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    spec["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, replace],
    }
    spec["pre_tokenizer"] = None
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    spec["decoder"]["decoders"].append(strip)
    return Tokenizer.from_str(json.dumps(spec))


def write_tokenizer(folder, kind):
    """Writes tokenizer.json and tokenizer_config.json as the hub's folders have them."""
    if kind in ("gemma", "llama2"):
        made = gemma() if kind == "gemma" else llama2()
    else:
        made = byte_level(kind)
    made.save(str(folder / "tokenizer.json"))
    start, end = SPECIALS[kind]
    pad = "<pad>" if kind in ("gemma", "llama2") else "<|pad|>"
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": start,
        "eos_token": end,
        "pad_token": pad,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return made


def sizes(name):
    """Returns the arguments of a model's configuration."""
    return {**_SIZES, **MODELS[name][1]}


def make(name, folder, dtype=None, shard_size="5GB", seed=0):
    """Writes a random model of a family with its tokenizer; returns transformers' model."""
    kind, _, tokenizer = MODELS[name]
    folder.mkdir(parents=True, exist_ok=True)
    text = write_tokenizer(folder, tokenizer)
    start, end = SPECIALS[tokenizer]
    ids = {
        "bos_token_id": text.token_to_id(start) if start else None,
        "eos_token_id": text.token_to_id(end),
        "pad_token_id": text.token_to_id("<pad>" if tokenizer == "gemma" else "<|pad|>"),
    }
    config = getattr(transformers, kind)(**sizes(name), **ids)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # Norms and biases too: ones and zeros hide mistakes.
            scale = 0.3 if parameter.ndim == 1 else 0.15
            parameter.add_(torch.randn(parameter.shape) * scale)
            # Else Gemma's scaled embeddings outweigh all layers, and greedy samples repeat a token.
            if tokenizer == "gemma" and "layernorm" in key and "post_" in key:
                parameter.add_(2.0)
    model = model.to(dtype or torch.float32).eval()
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


def tensors(folder):
    """Every tensor of a folder: its type, its shape, its bytes."""
    from safetensors import safe_open

    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118
                array = opened.get_tensor(name)
                assert name not in found
                found[name] = (array.dtype, array.shape, np.ascontiguousarray(array).tobytes())
    return found
