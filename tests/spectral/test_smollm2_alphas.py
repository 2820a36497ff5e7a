"""On a real model's matrices the alphas equal the plain loops, and weightwatcher's."""

import pytest
import torch

from axolotl_alphalora.spectral.estimators import (
    analyze_weightwatcher,
    fit_power_law,
    fit_weightwatcher,
)
from axolotl_alphalora.spectral.spectrum import pool, spectrum
from helpers.estimating import OWN_ESTIMATORS, plain_fit

LOOPS_TAKE_LONG = "ks"
KINDS = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]


@pytest.fixture(scope="module")
def spectra(smollm2, one_thread):
    """Significant eigenvalues of each matrix, and the squares of its singular values."""
    found = {}
    for name, read in smollm2.items():
        weight = read()
        eigenvalues = pool(spectrum(weight)[None], tuple(weight.shape))
        assert len(eigenvalues) == min(weight.shape)
        found[name] = eigenvalues, torch.linalg.svdvals(weight.double()) ** 2
    assert len(found) == 210
    return found


@pytest.mark.parametrize("method", [name for name in OWN_ESTIMATORS if name != LOOPS_TAKE_LONG])
def test_every_matrix_has_the_alpha_of_the_plain_loops(spectra, method):
    for name, (eigenvalues, reference) in spectra.items():
        alpha = fit_power_law(eigenvalues, method).alpha
        assert alpha == pytest.approx(plain_fit(reference, method).alpha, abs=1e-3), name


@pytest.mark.parametrize("kind", KINDS)
def test_ks_has_the_alpha_of_the_plain_loops(spectra, kind):
    eigenvalues, reference = spectra[f"blk.7.{kind}.weight"]
    alpha = fit_power_law(eigenvalues, "ks").alpha
    assert alpha == pytest.approx(plain_fit(reference, "ks").alpha, abs=1e-3)


def test_ks_has_the_alpha_of_weightwatchers_fit_on_every_matrix(spectra):
    for name, (eigenvalues, reference) in spectra.items():
        alpha = fit_power_law(eigenvalues, "ks").alpha
        assert alpha == pytest.approx(fit_weightwatcher(reference).alpha, abs=1e-3), name


@pytest.mark.parametrize("kind", KINDS)
def test_ks_has_the_alpha_of_weightwatchers_own_analysis(spectra, smollm2, kind):
    """Also on a matrix with eigenvalues under weightwatcher's threshold: q has two here."""
    name = f"blk.23.{kind}.weight"
    fit = fit_power_law(spectra[name][0], "ks")
    expected = analyze_weightwatcher(smollm2[name]())
    assert fit.alpha == pytest.approx(expected.alpha, abs=1e-3)
    assert fit.x_min == pytest.approx(expected.x_min, rel=1e-6)
    assert fit.distance == pytest.approx(expected.distance, abs=1e-6)
    assert fit.tail_size == expected.tail_size
