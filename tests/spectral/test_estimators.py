"""weightwatcher's answers are passed on as they are, its failures and its noise are not."""

import sys

import pytest
import torch

from axolotl_alphalora.settings import ESTIMATORS
from axolotl_alphalora.spectral.estimators import (
    TABLE,
    analyze_weightwatcher,
    fit_power_law,
    fit_weightwatcher,
)
from axolotl_alphalora.spectral.spectrum import spectrum


def matrix(rows, columns):
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    return torch.randn(rows, columns, generator=generator)


@pytest.mark.parametrize("shape", [(40, 90), (12, 30)])
def test_its_fit_of_a_spectrum_is_its_analysis_of_the_matrix(shape):
    weight = matrix(*shape)
    analysis, fit = analyze_weightwatcher(weight), fit_weightwatcher(spectrum(weight))
    assert fit.alpha == pytest.approx(analysis.alpha, rel=1e-9)
    assert fit.x_min == pytest.approx(analysis.x_min, rel=1e-9)
    assert fit.tail_size == analysis.tail_size


def test_orientation_dtype_and_order_do_not_matter():
    weight = matrix(40, 90).bfloat16()
    alpha = analyze_weightwatcher(weight).alpha
    assert analyze_weightwatcher(weight.T.float()).alpha == pytest.approx(alpha, rel=1e-9)
    assert fit_weightwatcher(spectrum(weight).flip(0)).alpha == pytest.approx(alpha, rel=1e-9)


def test_it_is_an_estimator_by_name():
    eigenvalues = spectrum(matrix(40, 90))
    assert fit_power_law(eigenvalues, "weightwatcher") == fit_weightwatcher(eigenvalues)


def test_its_threshold_ignores_the_scale_and_ours_has_none():
    eigenvalues = spectrum(matrix(60, 60))
    small = eigenvalues * 1e-7
    assert 8 < int((small > 1e-5).sum()) < 50
    ks = fit_power_law(eigenvalues, "ks").alpha
    assert fit_weightwatcher(eigenvalues).alpha == pytest.approx(ks, rel=1e-9)
    assert fit_power_law(small, "ks").alpha == pytest.approx(ks, rel=1e-9)
    assert fit_weightwatcher(small).alpha != pytest.approx(ks, rel=1e-3)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(9, 9), "answers alpha -1, status 'failed'"),
        (torch.eye(9), "answers alpha 0, status 'success'"),
        (torch.eye(40), "answers alpha inf, status 'success'"),
        (matrix(7, 30), "leaves out a 7 x 30 matrix"),
        (torch.ones(3), r"a tensor of shape \(3,\)"),
    ],
)
def test_no_answer_is_an_error_that_says_what_it_answered(weight, message):
    with pytest.raises(ValueError, match=message):
        analyze_weightwatcher(weight)


def test_a_spectrum_under_its_threshold_is_an_error():
    with pytest.raises(ValueError, match="alpha -1, status 'failed'"):
        fit_power_law(
            torch.rand(30, generator=torch.Generator().manual_seed(0)) * 1e-6 + 1e-9,
            "weightwatcher",
        )


def test_without_it_the_error_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "weightwatcher", None)
    with pytest.raises(ImportError, match="pip install weightwatcher"):
        fit_power_law(torch.arange(1.0, 40), "weightwatcher")
    with pytest.raises(ImportError, match="pip install weightwatcher"):
        analyze_weightwatcher(matrix(40, 40))


QUIET = """
import logging, sys, warnings
from axolotl_alphalora.spectral.estimators import analyze_weightwatcher, fit_weightwatcher
import torch
assert not {"weightwatcher", "pandas", "matplotlib"} & sys.modules.keys()
before = list(warnings.filters), logging.getLogger().level, list(logging.getLogger().handlers)
fit_weightwatcher(torch.arange(1.0, 12))
analyze_weightwatcher(torch.randn(12, 30))
try:
    analyze_weightwatcher(torch.zeros(9, 9))
except ValueError:
    pass
assert "weightwatcher" in sys.modules
after = list(warnings.filters), logging.getLogger().level, list(logging.getLogger().handlers)
assert after == before, after
assert not logging.getLogger("weightwatcher").disabled
"""


def test_it_is_imported_on_first_use_and_leaves_no_trace(fresh_process, tmp_path):
    done = fresh_process("-c", QUIET, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_the_table_has_the_names_that_settings_take():
    assert tuple(TABLE) == ESTIMATORS
