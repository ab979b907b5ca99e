"""The packaged configurations have the published numbers of parameters.

PaLM: Chowdhery et al. 2022, table 1 (billions, rounded). All others: the elements of the published
checkpoints' tensors, which is also what transformers 5.12 counts for the models of their config
(`sum(p.numel() for p in model.parameters())`, shared embeddings once; of Gemma 3 4B the text model
alone).
"""

import pytest

from lmsi_jax.config import gin_loader
from lmsi_jax.config.configurables import load_run

EXACT = {
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma3_1b": 999_885_952,
    "gemma3_4b": 3_880_263_168,
    "llama3_1b": 1_235_814_400,
    "llama3_3b": 3_212_749_824,
    "llama3_8b": 8_030_261_248,
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_3b": 3_085_938_688,
    "qwen2_5_7b": 7_615_616_512,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
}
PALM = {"palm_8b": 8.63, "palm_62b": 62.50, "palm_540b": 540.35}


@pytest.fixture
def packaged(tmp_path):
    def load(name):
        file = tmp_path / "run.gin"
        file.write_text(
            f"include 'models/{name}.gin'\nRun.model = @ModelConfig()\nRun.output_dir = 'none'\n"
        )
        gin_loader.load(str(file), gin_loader.GinArgs())
        return load_run().model

    return load


@pytest.mark.parametrize("name", EXACT)
def test_it_has_the_published_number_of_parameters(packaged, name):
    assert packaged(name).parameter_count == EXACT[name]


@pytest.mark.parametrize("name", PALM)
def test_palm_has_the_published_billions(packaged, name):
    assert packaged(name).parameter_count / 1e9 == pytest.approx(PALM[name], rel=1e-3)


def test_every_packaged_model_is_counted_here():
    from importlib import resources

    files = resources.files("lmsi_jax.gin_configs") / "models"
    names = {file.name.removesuffix(".gin") for file in files.iterdir()}
    assert names - {"embedded"} == set(EXACT) | set(PALM)
