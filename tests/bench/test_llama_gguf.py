"""The GGUF files that llama.cpp is measured with."""

import numpy as np
import pytest

from bench.peers.llama_gguf import WEIGHTS, write
from bench.workloads import WORKLOADS


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_file_has_the_shape_and_nearly_the_weights_of_float32(weights, tmp_path) -> None:
    gguf = pytest.importorskip("gguf")
    model = WORKLOADS["smoke_E"].model
    for name in {"F32", weights}:
        write(tmp_path / name, model, 64, name)
    whole, rounded = (
        {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / name).tensors}
        for name in ("F32", weights)
    )
    assert sum(t.n_elements for t in whole.values() if len(t.shape) == 2) == model.parameters
    for name, tensor in rounded.items():
        exact = gguf.quants.dequantize(whole[name].data, whole[name].tensor_type)
        given = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert tensor.tensor_type.name == (weights if len(tensor.shape) == 2 else "F32")
        assert np.abs(given - exact).mean() < 0.1 * np.abs(exact).mean()
