"""Shapes that a decoder can have, and those that are refused."""

import dataclasses
import json

import pytest
from families import FAMILIES, of_family

from lmsi_jax.config import LinearScaling, Llama3Scaling, ModelConfig, YarnScaling
from lmsi_jax.errors import LmsiError


def test_windows_are_cycled_over_the_layers(micro_config):
    config = dataclasses.replace(micro_config, num_layers=5, windows=(4, 4, 0))
    assert [config.window(layer) for layer in range(5)] == [4, 4, 0, 4, 4]
    assert [micro_config.window(layer) for layer in range(2)] == [0, 0]


@pytest.mark.parametrize("windows", [(), [4, 0], 4, (4, -1), (4.0,), (None,), (True,)])
def test_windows_that_are_no_tuple_of_lengths_are_refused(micro_config, windows):
    with pytest.raises(LmsiError, match="ModelConfig.windows = "):
        dataclasses.replace(micro_config, windows=windows)


@pytest.mark.parametrize("name", ["attention_softcap", "logits_softcap"])
@pytest.mark.parametrize("cap", [-1.0, float("inf"), float("nan"), None, "30"])
def test_soft_caps_out_of_range_are_refused(micro_config, name, cap):
    with pytest.raises(LmsiError, match=f"ModelConfig.{name} = .* use 0 .off. or more"):
        dataclasses.replace(micro_config, **{name: cap})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_survives_json(micro_config, family):
    config = of_family(micro_config, family)
    fields = json.loads(json.dumps(dataclasses.asdict(config)))
    assert ModelConfig.from_json(fields) == config


def test_a_manifest_without_the_newer_fields_is_read_as_palm_s(micro_config):
    fields = dataclasses.asdict(micro_config)
    for name in ("block", "biases", "rope_scaling", "tied_embeddings"):
        del fields[name]
    assert ModelConfig.from_json(fields) == micro_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": "serial"}, "ModelConfig.block = 'serial'; use 'parallel' or 'sequential'"),
        ({"activation": "relu"}, "ModelConfig.activation = 'relu'; use 'silu' or 'gelu'"),
        ({"remat": "all"}, "ModelConfig.remat = 'all'; use 'none', 'layer' or 'dots'"),
        ({"post_norms": True}, "post_norms needs ModelConfig.block = 'sequential'"),
        ({"biases": ("q",)}, "must be a tuple of query, key, value"),
        ({"biases": ["query"]}, "must be a tuple of query, key, value"),
        ({"query_scalar": -1.0}, "ModelConfig.query_scalar = -1.0"),
        ({"local_rope_theta": None}, "ModelConfig.local_rope_theta = None"),
    ],
)
def test_choices_that_do_not_exist_are_named(micro_config, changes, message):
    with pytest.raises(LmsiError, match=message):
        dataclasses.replace(micro_config, **changes)


@pytest.mark.parametrize(
    ("scaling", "changes", "message"),
    [
        (LinearScaling, {"factor": 0.5}, "LinearScaling.factor = 0.5; use 1 or more"),
        (Llama3Scaling, {"low_freq_factor": 4.0}, "low_freq_factor must be below high"),
        (Llama3Scaling, {"original_length": 0}, "Llama3Scaling.original_length = 0"),
        (
            YarnScaling,
            {"original_length": 8, "beta_slow": 0.0},
            "beta_slow = 0.0; use a number above 0",
        ),
        (
            YarnScaling,
            {"original_length": 8, "attention_factor": -1.0},
            "use 0 .the paper's. or more",
        ),
    ],
)
def test_scalings_out_of_range_are_refused(scaling, changes, message):
    with pytest.raises(LmsiError, match=message):
        scaling(**({"factor": 8.0} | changes))
