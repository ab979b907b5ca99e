"""The benchmark's workloads and the roofline under them."""

import numpy as np
import pytest

from bench.workloads import (
    LLAMA_1B,
    MODEL,
    SHAPES,
    WORKLOADS,
    best_roofline,
    prompts,
    roofline,
)


def test_the_model_has_37_7_million_parameters() -> None:
    assert MODEL.parameters == 37_748_736


def test_the_accelerators_model_has_the_size_of_llama_3_2_1b() -> None:
    # Published: 1,235,814,400, of which 33 norms of 2,048 are not counted here.
    assert LLAMA_1B.parameters == 1_235_814_400 - 33 * 2048
    # Layers, both, kv heads, width, bfloat16.
    assert LLAMA_1B.cache_bytes("bfloat16") == 16 * 2 * 8 * 64 * 2
    c = WORKLOADS["C"]
    assert (c.questions, c.samples, max(c.lengths)) == (64, 32, 256)
    assert np.median(c.lengths) == pytest.approx(90, abs=5)


def test_workload_b_is_eight_questions_of_32_samples_up_to_256_tokens() -> None:
    b = WORKLOADS["B"]
    assert (b.questions, len(b.lengths), max(b.lengths)) == (8, 256, 256)
    assert np.median(b.lengths) == pytest.approx(90, abs=5)


@pytest.mark.parametrize(("name", "compute", "both"), [("A", 4890, 3794), ("B", 4826, 3311)])
def test_the_floor_of_a_known_machine(name: str, compute: int, both: int) -> None:
    got = roofline(WORKLOADS[name], matmul_rate=485e9, bandwidth=43e9)
    assert round(got["tokens_per_s_compute"]) == compute
    assert round(got["tokens_per_s"]) == both


@pytest.mark.parametrize(
    ("name", "published", "others"),
    [
        ("D", 134_515_008, 61 * 576),  # SmolLM2-135M, less its norms
        ("E", 494_032_768, 49 * 896 + 24 * (14 + 2 * 2) * 64),  # Qwen2.5-0.5B, and its biases
        # Gemma 3 270M: four norms a layer, a last one, and those of queries and keys.
        ("F", 268_098_176, (4 * 18 + 1) * 640 + 2 * 18 * 256),
    ],
)
def test_the_shapes_are_those_of_published_models(name, published, others) -> None:
    assert SHAPES[name].parameters == published - others


def test_the_roofline_is_that_of_the_fastest_format() -> None:
    work, rates = WORKLOADS["D-64x16"], {"float32": 2e11, "bfloat16": 1e12, "int8": 1e10}
    best = best_roofline(work, rates, bandwidth=4e10)
    assert best["format"] == "bfloat16"
    assert best["tokens_per_s"] == best["formats"]["bfloat16"]["tokens_per_s"]
    narrow, wide = (roofline(work, 1e12, 4e10, dtype) for dtype in ("bfloat16", "float32"))
    assert narrow["bytes"] == pytest.approx(wide["bytes"] / 2)


def test_the_questions_of_a_workload_share_their_first_tokens_alone() -> None:
    a = WORKLOADS["A"]
    rows = prompts(a)
    assert rows.shape == (4, 768) and rows.min() >= 2 and rows.max() < MODEL.vocabulary
    assert (rows[:, : a.shared] == rows[0, : a.shared]).all()
    assert (rows[0, a.shared :] != rows[1, a.shared :]).any()
