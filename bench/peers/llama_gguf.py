"""Writes a benchmark's model as a GGUF file for llama.cpp, with random weights."""

import pathlib
from collections.abc import Iterator

import numpy as np

from bench.workloads import Model

WEIGHTS = ("F32", "F16", "Q8_0", "Q4_0")
"""The types of matrices that the gguf package can make."""


def write(path: pathlib.Path, model: Model, context: int, weights: str) -> None:
    """Writes the file; it has no vocabulary's texts, and no output matrix of its own (tied).

    Args:
      path: the file.
      model: its shape.
      context: most tokens of a text.
      weights: the type of the matrices; norms are float32.
    """
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(context)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.mlp)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(model.vocabulary)
    writer.add_tokenizer_model("none")
    many = "ALL" if weights == "F32" else "MOSTLY"
    writer.add_file_type(gguf.LlamaFileType[f"{many}_{weights}"])
    kind = gguf.GGMLQuantizationType[weights]
    for name, values in _tensors(model):
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(model: Model) -> Iterator[tuple[str, np.ndarray]]:
    """Yields all tensors with their names in llama.cpp, [outputs, inputs]."""
    rng, inner = np.random.default_rng(0), model.heads * model.head_dim
    outer = model.kv_heads * model.head_dim

    def matrix(outputs: int, inputs: int) -> np.ndarray:
        """Random weights that keep the scale of their input."""
        return rng.standard_normal((outputs, inputs), np.float32) * np.float32(inputs**-0.5)

    ones = np.ones(model.width, np.float32)
    yield "token_embd.weight", matrix(model.vocabulary, model.width)
    yield "output_norm.weight", ones
    for layer in range(model.layers):
        block = {
            "attn_norm": ones,
            "attn_q": matrix(inner, model.width),
            "attn_k": matrix(outer, model.width),
            "attn_v": matrix(outer, model.width),
            "attn_output": matrix(model.width, inner),
            "ffn_norm": ones,
            "ffn_gate": matrix(model.mlp, model.width),
            "ffn_up": matrix(model.mlp, model.width),
            "ffn_down": matrix(model.width, model.mlp),
        }
        yield from ((f"blk.{layer}.{name}.weight", values) for name, values in block.items())
