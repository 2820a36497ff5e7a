"""Spectra equal the squared singular values and tell round-off from rank."""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from axolotl_alphalora.spectral.estimators import fit_power_law
from axolotl_alphalora.spectral.spectrum import pool, spectra, spectrum, stacked_spectra

# The package's own name for the module is taken by its function.
module = sys.modules[spectrum.__module__]


def matrix(rows, columns, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    return torch.randn(rows, columns, generator=generator).to(dtype)


@pytest.mark.parametrize("shape", [(40, 40), (96, 24), (24, 96), (1, 5), (1100, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_eigenvalues_are_squared_singular_values(shape, dtype):
    weight = matrix(*shape, dtype)
    eigenvalues = spectrum(weight)
    expected = torch.linalg.svdvals(weight.double()).flip(0) ** 2
    assert eigenvalues.dtype == torch.float64
    torch.testing.assert_close(eigenvalues, expected, rtol=1e-9, atol=1e-9 * float(expected[-1]))


def test_the_transposed_matrix_has_the_same_spectrum():
    weight = matrix(30, 70)
    torch.testing.assert_close(spectrum(weight), spectrum(weight.T), rtol=1e-10, atol=0)


def test_a_trainable_weight_gives_a_spectrum_without_gradient():
    assert not spectrum(torch.nn.Parameter(matrix(8, 8))).requires_grad


@pytest.mark.parametrize("elements", [1, 64, 1000])
@pytest.mark.parametrize("shape", [(150, 40), (40, 150), (37, 37), (1, 9)])
def test_slices_do_not_change_the_spectrum(monkeypatch, elements, shape):
    weight = matrix(*shape)
    expected = torch.linalg.svdvals(weight.double()).flip(0) ** 2
    monkeypatch.setattr(module, "_SLICE_ELEMENTS", elements)
    scale = float(expected[-1])
    torch.testing.assert_close(spectrum(weight), expected, rtol=0, atol=1e-14 * scale)


class LargestDouble(TorchDispatchMode):
    """Records the size of the largest float64 tensor that an operator returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64:
                self.elements = max(self.elements, leaf.numel())
        return result


@pytest.mark.parametrize("shape", [(3000, 60), (60, 3000)])
def test_no_copy_of_the_whole_weight_is_made(monkeypatch, shape):
    weight = matrix(*shape, torch.bfloat16)
    monkeypatch.setattr(module, "_SLICE_ELEMENTS", 100 * 60)
    with LargestDouble() as largest:
        spectrum(weight)
    assert 60 * 60 <= largest.elements <= 100 * 60


@pytest.mark.parametrize("shape", [(5, 40, 30), (3, 20, 50), (1, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stack_has_the_spectra_of_its_matrices(shape, dtype):
    stack = matrix(shape[0] * shape[1], shape[2], dtype).reshape(shape)
    expected = torch.stack([spectrum(weight) for weight in stack])
    torch.testing.assert_close(stacked_spectra(stack), expected, rtol=1e-9, atol=1e-9)


def test_a_matrix_is_its_own_only_window():
    weight = matrix(30, 50)
    assert torch.equal(spectra(weight), spectrum(weight)[None])
    assert torch.equal(spectra(weight, (30, 50)), spectrum(weight)[None])


@pytest.mark.parametrize("rank", [3, 8, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_off_of_a_low_rank_matrix_is_dropped(rank, dtype):
    weight = (matrix(60, rank, torch.float64) @ matrix(rank, 90, torch.float64)).to(dtype)
    eigenvalues = spectrum(weight)
    assert len(eigenvalues) == 60
    assert len(pool(eigenvalues[None], (60, 90))) == rank


def test_zero_rows_do_not_change_the_fit():
    weight = matrix(48, 64)
    padded = torch.cat([weight, torch.zeros(16, 64)])
    kept = pool(spectrum(padded)[None], (64, 64))
    assert len(kept) == 48
    fit, expected = fit_power_law(kept), fit_power_law(spectrum(weight))
    assert fit.alpha == pytest.approx(expected.alpha, rel=1e-6)


def test_a_full_rank_spectrum_is_kept_whole():
    eigenvalues = spectrum(matrix(50, 80))
    assert torch.equal(pool(eigenvalues[None], (50, 80)), eigenvalues)


def test_a_matrix_of_zeros_has_rank_zero():
    eigenvalues = spectrum(torch.zeros(4, 6))
    assert eigenvalues.tolist() == [0.0] * 4
    assert len(pool(eigenvalues[None], (4, 6))) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinity_are_counted_and_refused(bad, dtype):
    weight = matrix(4, 5, dtype)
    weight[1, 2] = weight[3, 0] = bad
    with pytest.raises(ValueError, match="2 of 20 entries are NaN or infinite"):
        spectrum(weight)


@pytest.mark.parametrize(
    "weight",
    [torch.ones(3), torch.ones(2, 3, 4), torch.ones(0, 4), torch.ones(3, 3, dtype=torch.int8)],
)
def test_what_is_no_weight_matrix_is_refused(weight):
    for measure in (spectrum, spectra, lambda weight: spectra(weight, (1, 1))):
        with pytest.raises(ValueError, match="non-empty floating-point matrix"):
            measure(weight)


def test_what_is_no_stack_of_matrices_is_refused():
    with pytest.raises(ValueError, match="non-empty floating-point stack of matrices"):
        stacked_spectra(torch.ones(3, 3))
    with pytest.raises(ValueError, match="1 of 12 entries are NaN"):
        stacked_spectra(
            torch.ones(2, 2, 3)
            .index_fill(0, torch.tensor([1]), 0)
            .index_put(
                (torch.tensor([0]), torch.tensor([0]), torch.tensor([0])), torch.tensor(torch.nan)
            )
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("window", [None, (32, 48), (64, 96)])
def test_a_weight_on_the_gpu_is_analysed_there(window):
    weight = matrix(64, 96)
    eigenvalues = spectra(weight.cuda(), window)
    assert eigenvalues.is_cuda
    torch.testing.assert_close(eigenvalues.cpu(), spectra(weight, window), rtol=1e-9, atol=1e-9)
    fit, expected = fit_power_law(eigenvalues[0]), fit_power_law(spectra(weight, window)[0])
    assert fit.alpha == pytest.approx(expected.alpha, abs=1e-6)
