"""Tiny GGUF files of each architecture, written by the package gguf as converters write them."""

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="needs the extra [gguf]")

WIDTH, HEADS, KV_HEADS, HEAD_DIM, MLP, LAYERS, VOCABULARY = 64, 4, 2, 16, 96, 2, 300

_NAMES = {
    "model.embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_name(arch, name):
    """Returns a tensor's name in GGUF files."""
    module, _, kind = name.rpartition(".")
    names = {**_NAMES, "post_attention_layernorm": "ffn_norm"}
    if arch.startswith("gemma"):
        names["post_attention_layernorm"] = "post_attention_norm"
    if module in names:
        return f"{names[module]}.{kind}"
    layer, _, inner = module.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{names[inner]}.{kind}"


def stored(arch, name, values, heads=HEADS, kv_heads=KV_HEADS):
    """Returns a tensor of a Hugging Face model as converters store it."""
    if arch.startswith("gemma") and name.endswith("norm.weight"):
        return values + 1
    count = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2])
    if arch != "llama" or count is None:
        return values
    # Row i of a head goes with row i + half; in llama's files they are neighbours.
    half = len(values) // count // 2
    made = np.empty_like(values)
    for head in range(count):
        for i in range(half):
            for side in range(2):
                made[head * 2 * half + 2 * i + side] = values[head * 2 * half + side * half + i]
    return made


def tensors(arch, tied=True, biased=False, seed=0):
    """Returns random tensors of a Hugging Face model, by its names."""
    random = np.random.default_rng(seed)
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    if not tied:
        shapes["lm_head.weight"] = (VOCABULARY, WIDTH)
    layer = {
        "self_attn.q_proj.weight": (queries, WIDTH),
        "self_attn.k_proj.weight": (keys, WIDTH),
        "self_attn.v_proj.weight": (keys, WIDTH),
        "self_attn.o_proj.weight": (WIDTH, queries),
        "mlp.gate_proj.weight": (MLP, WIDTH),
        "mlp.up_proj.weight": (MLP, WIDTH),
        "mlp.down_proj.weight": (WIDTH, MLP),
        "input_layernorm.weight": (WIDTH,),
        "post_attention_layernorm.weight": (WIDTH,),
    }
    if arch.startswith("gemma"):
        for side in ("pre", "post"):
            layer[f"{side}_feedforward_layernorm.weight"] = (WIDTH,)
    if arch in ("qwen3", "gemma3"):
        layer |= {f"self_attn.{side}_norm.weight": (HEAD_DIM,) for side in "qk"}
    if arch == "qwen2" or biased:
        sizes = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        sizes |= {"o_proj": WIDTH} if biased else {}
        layer |= {f"self_attn.{name}.bias": (size,) for name, size in sizes.items()}
    for number in range(LAYERS):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return {
        name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }


def sizes(arch):
    """Returns the keys of the architecture that every file has."""
    return {
        "block_count": LAYERS,
        "context_length": 512,
        "embedding_length": WIDTH,
        "feed_forward_length": MLP,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
        **({"attention.sliding_window": 8} if arch.startswith("gemma") else {}),
    }


def tokens(count=VOCABULARY):
    """Returns the keys of a byte-level vocabulary with one merge."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(byte) for byte in plain] + [chr(0x100 + n) for n in range(256 - len(plain))]
    names = letters + ["<|im_start|>", "<|im_end|>", "<tool>", "ab"]
    types = [1] * 256 + [3, 3, 4, 1]
    names += [f"[PAD{number}]" for number in range(len(names), count)]
    return {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": names,
        "token_type": types + [5] * (count - len(types)),
        "merges": ["a b"],
        "bos_token_id": 256,
        "eos_token_id": 257,
        "add_bos_token": False,
    }


def write(
    path,
    arch,
    values=None,
    keys=None,
    vocabulary=None,
    types=None,
    template=None,
    extra=None,
    split=0,
    heads=(HEADS, KV_HEADS),
):
    """Writes a model.

    Args:
      path: the file.
      arch: general.architecture.
      values: tensors by Hugging Face's names.
      keys: more keys of the architecture; None leaves one of `sizes` out.
      vocabulary: keys of the tokenizer.
      types: of ggml, by the end of Hugging Face's name; a vector is always F32.
      template: the chat template.
      extra: tensors by ggml's names, as they are.
      split: tensors of a file; 0: one file.
      heads: how many queries' and keys' there are.
    """
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    for key, value in {**sizes(arch), **(keys or {})}.items():
        _add(writer, f"{arch}.{key}", value)
    for key, value in (tokens() if vocabulary is None else vocabulary).items():
        _add(writer, f"tokenizer.ggml.{key}", value)
    if template:
        writer.add_chat_template(template)
    for name, value in (tensors(arch) if values is None else values).items():
        made = stored(arch, name, value, *heads)
        kind = gguf.GGMLQuantizationType.F32
        if made.ndim > 1:
            chosen = [t for end, t in (types or {}).items() if name.endswith(end)]
            kind = gguf.GGMLQuantizationType[chosen[0]] if chosen else kind
        data = made if kind.name == "F32" else gguf.quants.quantize(made, kind)
        writer.add_tensor(gguf_name(arch, name), data, raw_dtype=kind)
    for name, (data, kind) in (extra or {}).items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer, key, value):
    kinds = ((bool, "bool"), (int, "uint32"), (float, "float32"), (str, "string"), (list, "array"))
    for kind, name in kinds:
        if isinstance(value, kind):
            return getattr(writer, f"add_{name}")(key, value)
    assert value is None
