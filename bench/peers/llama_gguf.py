"""Writes the benchmark's model as a GGUF file for llama.cpp, with random float32 weights."""

import pathlib

import numpy as np

from bench.workloads import MODEL


def write(path: pathlib.Path, context: int) -> None:
    """Writes the file; it has no vocabulary's texts, and no output matrix of its own (tied)."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(context)
    writer.add_embedding_length(MODEL.width)
    writer.add_block_count(MODEL.layers)
    writer.add_feed_forward_length(MODEL.mlp)
    writer.add_head_count(MODEL.heads)
    writer.add_head_count_kv(MODEL.heads)
    writer.add_rope_dimension_count(MODEL.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(MODEL.vocabulary)
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, values in _tensors().items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors() -> dict[str, np.ndarray]:
    """Returns all tensors by their names in llama.cpp, [outputs, inputs]."""
    rng, inner = np.random.default_rng(0), MODEL.heads * MODEL.head_dim

    def matrix(outputs: int, inputs: int) -> np.ndarray:
        """Random weights that keep the scale of their input."""
        return rng.standard_normal((outputs, inputs), np.float32) * np.float32(inputs**-0.5)

    ones = np.ones(MODEL.width, np.float32)
    made = {"token_embd.weight": matrix(MODEL.vocabulary, MODEL.width), "output_norm.weight": ones}
    for layer in range(MODEL.layers):
        block = {
            "attn_norm": ones,
            "attn_q": matrix(inner, MODEL.width),
            "attn_k": matrix(inner, MODEL.width),
            "attn_v": matrix(inner, MODEL.width),
            "attn_output": matrix(MODEL.width, inner),
            "ffn_norm": ones,
            "ffn_gate": matrix(MODEL.mlp, MODEL.width),
            "ffn_up": matrix(MODEL.mlp, MODEL.width),
            "ffn_down": matrix(MODEL.width, MODEL.mlp),
        }
        made |= {f"blk.{layer}.{name}.weight": values for name, values in block.items()}
    return made
