"""AlphaLoRA's allocation reproduces the published scores' counts."""

import math

import pytest

from axolotl_alphalora.allocation import allocate

LLAMA_2_7B_SCORES = [
    *(2.14, 2.74, 3.03, 3.12, 3.2, 3.15, 3.01, 3.04, 2.79, 2.85, 2.75, 2.72, 2.96, 2.97, 3.03),
    *(3.15, 3.45, 3.72, 4.02, 3.77, 4.37, 4.55, 4.32, 4.18, 4.25, 4.2, 3.74, 4.25, 4.22, 4.13),
    *(4.42, 3.44),
]
LLAMA_2_7B_COUNTS = [
    *(1, 3, 3, 4, 4, 4, 3, 3, 3, 3, 3, 2, 3, 3, 3, 4),
    *(5, 5, 7, 6, 8, 9, 8, 7, 8, 7, 6, 8, 8, 7, 8, 4),
]


@pytest.fixture
def llama_scores():
    return {f"model.layers.{i}": score for i, score in enumerate(LLAMA_2_7B_SCORES)}


def test_llama_2_7b_with_160_experts(llama_scores):
    counts = allocate(llama_scores, total=160)
    assert list(counts) == list(llama_scores)
    assert list(counts.values()) == LLAMA_2_7B_COUNTS


@pytest.mark.parametrize("total", [32, 96, 128, 160, 256])
@pytest.mark.parametrize("beta", [0, 1, 2.5, 10])
def test_every_budget_is_met_exactly_and_no_block_goes_without(llama_scores, total, beta):
    counts = allocate(llama_scores, total=total, beta=beta)
    assert sum(counts.values()) == total
    assert min(counts.values()) >= 1


def test_bounds_hold(llama_scores):
    counts = allocate(llama_scores, total=160, minimum=3, maximum=6)
    assert sum(counts.values()) == 160
    assert set(counts.values()) <= {3, 4, 5, 6}


def test_beta_zero_shares_evenly(llama_scores):
    assert set(allocate(llama_scores, total=160, beta=0).values()) == {5}


def test_extreme_exponents_do_not_overflow():
    assert allocate({"a": 1e200, "b": 1.0}, total=10, beta=100) == {"a": 9, "b": 1}


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
def test_an_unusable_beta_is_refused(beta):
    with pytest.raises(ValueError, match="beta is"):
        allocate({"a": 2.0}, total=1, beta=beta)


@pytest.mark.parametrize("score", [0.0, -1.0, math.nan, math.inf])
def test_an_unusable_score_is_named(score):
    with pytest.raises(ValueError, match="score of block 'layers.1' is"):
        allocate({"layers.0": 2.0, "layers.1": score}, total=4)


def test_no_blocks_are_refused():
    with pytest.raises(ValueError, match="no blocks"):
        allocate({}, total=4)
