"""Spectra equal the squared singular values and tell round-off from rank."""

import pytest
import torch

from axolotl_alphalora.spectral import fit_power_law, significant, spectrum


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


def test_threads_are_as_before():
    before = torch.get_num_threads()
    spectrum(matrix(16, 16))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("rank", [3, 8, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_off_of_a_low_rank_matrix_is_dropped(rank, dtype):
    weight = (matrix(60, rank, torch.float64) @ matrix(rank, 90, torch.float64)).to(dtype)
    eigenvalues = spectrum(weight)
    assert len(eigenvalues) == 60
    assert len(significant(eigenvalues, (60, 90))) == rank


def test_zero_rows_do_not_change_the_fit():
    weight = matrix(48, 64)
    padded = torch.cat([weight, torch.zeros(16, 64)])
    kept = significant(spectrum(padded), (64, 64))
    assert len(kept) == 48
    fit, expected = fit_power_law(kept), fit_power_law(spectrum(weight))
    assert fit.alpha == pytest.approx(expected.alpha, rel=1e-6)


def test_a_full_rank_spectrum_is_kept_whole():
    eigenvalues = spectrum(matrix(50, 80))
    assert torch.equal(significant(eigenvalues, (50, 80)), eigenvalues)


def test_a_matrix_of_zeros_has_rank_zero():
    eigenvalues = spectrum(torch.zeros(4, 6))
    assert eigenvalues.tolist() == [0.0] * 4
    assert len(significant(eigenvalues, (4, 6))) == 0


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
    with pytest.raises(ValueError, match="non-empty floating-point matrix"):
        spectrum(weight)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_weight_on_the_gpu_is_analysed_there():
    weight = matrix(64, 96)
    eigenvalues = spectrum(weight.cuda())
    assert eigenvalues.is_cuda
    torch.testing.assert_close(eigenvalues.cpu(), spectrum(weight), rtol=1e-9, atol=1e-9)
    fit, expected = fit_power_law(eigenvalues), fit_power_law(spectrum(weight))
    assert fit.alpha == pytest.approx(expected.alpha, abs=1e-6)
