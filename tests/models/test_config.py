"""Shapes that a decoder can have, and those that are refused."""

import dataclasses

import pytest


def test_windows_are_cycled_over_the_layers(micro_config):
    config = dataclasses.replace(micro_config, num_layers=5, windows=(4, 4, 0))
    assert [config.window(layer) for layer in range(5)] == [4, 4, 0, 4, 4]
    assert [micro_config.window(layer) for layer in range(2)] == [0, 0]


@pytest.mark.parametrize("windows", [(), [4, 0], 4, (4, -1), (4.0,), (None,), (True,)])
def test_windows_that_are_no_tuple_of_lengths_are_refused(micro_config, windows):
    with pytest.raises(ValueError, match="ModelConfig.windows = "):
        dataclasses.replace(micro_config, windows=windows)


@pytest.mark.parametrize("name", ["attention_softcap", "logits_softcap"])
@pytest.mark.parametrize("cap", [-1.0, float("inf"), float("nan"), None, "30"])
def test_soft_caps_out_of_range_are_refused(micro_config, name, cap):
    with pytest.raises(ValueError, match=f"ModelConfig.{name} = .* must be above 0, or 0.0"):
        dataclasses.replace(micro_config, **{name: cap})
