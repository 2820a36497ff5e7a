"""Windows cover the matrix evenly, and their pooled spectra stand for it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axolotl_alphalora.spectral.estimators import fit_power_law
from axolotl_alphalora.spectral.spectrum import (
    default_window,
    pool,
    spectra,
    spectrum,
    window_grid,
)


def matrix(rows, columns):
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    return torch.randn(rows, columns, generator=generator)


@st.composite
def shapes_and_windows(draw):
    shape = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    return shape, (draw(st.integers(1, shape[0])), draw(st.integers(1, shape[1])))


@given(shapes_and_windows())
def test_the_fewest_windows_cover_every_entry(case):
    (rows, columns), (height, width) = case
    grid = window_grid((rows, columns), (height, width))
    assert len(set(grid)) == len(grid) == math.ceil(rows / height) * math.ceil(columns / width)
    covered = torch.zeros(rows, columns)
    for row, column in grid:
        window = covered[row : row + height, column : column + width]
        assert window.shape == (height, width)
        window += 1
    assert covered.min() >= 1


@given(shapes_and_windows())
def test_windows_are_evenly_spaced(case):
    shape, window = case
    for side in (0, 1):
        offsets = sorted({place[side] for place in window_grid(shape, window)})
        steps = [after - before for before, after in zip(offsets, offsets[1:], strict=False)]
        assert max(steps, default=0) - min(steps, default=0) <= 1


@pytest.mark.parametrize("window", [(5, 3), (3, 5), (0, 2), (2, -1)])
def test_a_window_that_does_not_fit_is_refused(window):
    message = f"a {window[0]} x {window[1]} window does not fit into a 4 x 4 matrix"
    with pytest.raises(ValueError, match=message):
        window_grid((4, 4), window)
    with pytest.raises(ValueError, match=message):
        spectra(torch.ones(4, 4), window)


def test_the_default_window_is_the_largest_square_that_fits_all():
    assert default_window({"q": (576, 576), "k": (192, 576), "up": (1536, 576)}) == (192, 192)
    assert default_window({"q": (30, 7)}) == (7, 7)
    with pytest.raises(ValueError, match="at least one non-empty matrix"):
        default_window({})


def test_a_gate_of_one_row_leaves_no_window():
    shapes = {"mlp.up_proj": (96, 64), "mlp.shared_expert_gate": (1, 64)}
    with pytest.raises(ValueError, match="shared_expert_gate leaves one of 1 x 1.*lora_exclude"):
        default_window(shapes, least=20)
    assert default_window({"q": (8, 8), "k": (2, 8)}, least=20) == (2, 2), "a tiny model"


@pytest.mark.parametrize("elements", [1, 400, 10**6])
def test_each_row_is_the_spectrum_of_its_window(monkeypatch, elements):
    monkeypatch.setitem(spectra.__globals__, "_SLICE_ELEMENTS", elements)
    weight = matrix(50, 33)
    rows = spectra(weight, (20, 10))
    places = window_grid((50, 33), (20, 10))
    assert rows.shape == (len(places), 10)
    for row, (top, left) in zip(rows, places, strict=True):
        expected = spectrum(weight[top : top + 20, left : left + 10])
        torch.testing.assert_close(row, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(40, 40), (30, 72), (72, 30)])
def test_square_windows_pool_to_the_same_spectrum_on_the_transposed_matrix(shape):
    weight = matrix(*shape)
    pooled = pool(spectra(weight, (16, 16)), (16, 16)).sort().values
    transposed = pool(spectra(weight.T, (16, 16)), (16, 16)).sort().values
    torch.testing.assert_close(pooled, transposed, rtol=1e-9, atol=1e-9)


def test_each_window_is_pooled_by_its_own_threshold():
    """The same low-rank matrix at two scales: one threshold would drop or keep too much."""
    low_rank = matrix(12, 3) @ matrix(3, 12)
    weight = torch.cat([low_rank, low_rank * 1e-8], dim=1).double()
    pooled = pool(spectra(weight, (12, 12)), (12, 12))
    alone = pool(spectrum(low_rank.double())[None], (12, 12))
    assert len(pooled) == 2 * len(alone) == 6
    torch.testing.assert_close(pooled[3:], alone * 1e-16, rtol=1e-6, atol=0)


def test_windows_remove_the_bias_of_the_aspect_ratio():
    """Two random matrices that differ in nothing but their shape."""
    window = default_window({"square": (64, 64), "wide": (64, 512)})
    plain, windowed = [], []
    for shape in ((64, 64), (64, 512)):
        weight = matrix(*shape)
        plain.append(fit_power_law(pool(spectrum(weight)[None], shape), "hill").alpha)
        windowed.append(fit_power_law(pool(spectra(weight, window), window), "hill").alpha)
    assert abs(plain[0] - plain[1]) > 1
    assert abs(windowed[0] - windowed[1]) < 0.1
