"""Matrices are measured one by one and averaged over their blocks."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from axolotl_alphalora.spectral import (
    CheckpointWeights,
    LiveWeights,
    block_scores,
    fit_power_law,
    measure,
    spectrum,
)

NAMES = ["h.0.q", "h.0.up", "h.1.q", "h.1.up"]


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    shapes = {"q": (32, 32), "up": (48, 32)}
    return {name: torch.randn(shapes[name[4:]], generator=generator) for name in NAMES}


@pytest.fixture
def checkpoint(weights, tmp_path):
    def write():
        file = tmp_path / "model.safetensors"
        save_file({f"{name}.weight": weight for name, weight in weights.items()}, file)
        return CheckpointWeights.open(tmp_path)

    return write


@pytest.mark.parametrize("method", ["xmin_peak", "hill"])
def test_rows_are_the_fits_in_the_order_asked_for(weights, checkpoint, method):
    seen = []
    rows = measure(checkpoint(), NAMES[::-1], method, seen.append)
    assert [row.module for row in rows] == seen == NAMES[::-1]
    for row in rows:
        fit = fit_power_law(spectrum(weights[row.module]), method)
        assert dataclasses.asdict(row) == {
            "module": row.module,
            "shape": tuple(weights[row.module].shape),
            **dataclasses.asdict(fit),
            "num_eigenvalues": 32,
            "numerical_rank": 32,
        }


def test_a_rank_deficient_matrix_is_measured_without_its_zeros_and_shows_it(weights, checkpoint):
    weights["h.0.q"][20:] = 0
    row = measure(checkpoint(), ["h.0.q"])[0]
    assert (row.num_eigenvalues, row.numerical_rank) == (32, 20)
    assert row.alpha == pytest.approx(
        fit_power_law(spectrum(weights["h.0.q"][:20])).alpha, rel=1e-6
    )


def test_a_block_scores_the_mean_of_its_alphas(checkpoint):
    rows = measure(checkpoint(), NAMES)
    alpha = {row.module: row.alpha for row in rows}
    assert block_scores(reversed(rows)) == {
        "h.0": pytest.approx((alpha["h.0.q"] + alpha["h.0.up"]) / 2),
        "h.1": pytest.approx((alpha["h.1.q"] + alpha["h.1.up"]) / 2),
    }
    assert list(block_scores(reversed(rows))) == ["h.0", "h.1"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w.fill_(float("nan")), "1024 of 1024 entries are NaN or infinite"),
        (lambda w: w.zero_(), "at least 3 eigenvalues, got 0"),
        (lambda w: w.copy_(torch.eye(32)), "all 32 eigenvalues equal 1"),
    ],
)
def test_an_unusable_matrix_is_named_with_its_file(weights, checkpoint, tmp_path, spoil, message):
    spoil(weights["h.1.q"])
    with pytest.raises(ValueError) as caught:
        measure(checkpoint(), NAMES)
    assert f"tensor 'h.1.q.weight' of {tmp_path / 'model.safetensors'}: " in str(caught.value)
    assert message in str(caught.value)


def test_an_unusable_live_matrix_is_named():
    layer = nn.Linear(8, 8)
    layer.weight.data[0, 0] = torch.inf
    with pytest.raises(ValueError, match="weight of live module '0': 1 of 64 entries"):
        measure(LiveWeights(nn.Sequential(layer)), ["0"])
