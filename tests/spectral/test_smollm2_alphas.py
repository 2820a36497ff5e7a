"""On a real model's matrices the alphas equal the plain loops over singular values."""

import pytest
import torch

from axolotl_alphalora.spectral import ESTIMATORS, fit_power_law, significant, spectrum


def assert_alphas_equal(weight, plain_fit):
    eigenvalues = significant(spectrum(weight), tuple(weight.shape))
    assert len(eigenvalues) == min(weight.shape)
    reference = (torch.linalg.svdvals(weight.double()) ** 2).tolist()
    for method in ESTIMATORS:
        alpha = fit_power_law(eigenvalues, method).alpha
        assert alpha == pytest.approx(plain_fit(reference, method).alpha, abs=1e-3), method


@pytest.mark.usefixtures("one_thread")
def test_every_matrix(smollm2, plain_fit):
    assert len(smollm2) == 210
    for read in smollm2.values():
        assert_alphas_equal(read(), plain_fit)
