"""The vectorised fit equals the formulas, and behaves as a power-law fit must."""

import math
from dataclasses import astuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axolotl_alphalora.settings import ESTIMATORS, MatrixQuality
from axolotl_alphalora.spectral import power_law as module
from axolotl_alphalora.spectral.estimators import fit_ascending, fit_power_law
from helpers.estimating import OWN_ESTIMATORS, plain_fit

SCALE_FREE = ["xmin_peak", "hill", "ks"]


def pareto(size, alpha, seed=0):
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(size, generator=generator, dtype=torch.float64)
    return (1 - uniform) ** (-1 / (alpha - 1))


def heavy_tailed(size, seed):
    """A log-normal bulk with a Pareto tail, the shape of a trained layer's spectrum."""
    generator = torch.Generator().manual_seed(seed)
    bulk = torch.randn(size - size // 4, generator=generator, dtype=torch.float64).exp()
    return torch.cat([bulk, 2 * pareto(size // 4, 2.5, seed)])


SPECTRA = {
    "pareto": lambda seed: pareto(500, 3.0, seed),
    "bulk and tail": lambda seed: heavy_tailed(576, seed),
    "gaussian matrix": lambda seed: (
        torch.linalg.svdvals(
            torch.randn(60, 90, generator=torch.Generator().manual_seed(seed)).double()
        )
        ** 2
    ),
    "short": lambda seed: heavy_tailed(12, seed),
}


@pytest.mark.parametrize("method", OWN_ESTIMATORS)
@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("seed", range(4))
def test_the_fit_equals_the_plain_loops(method, kind, seed):
    eigenvalues = SPECTRA[kind](seed)
    fit, expected = fit_power_law(eigenvalues, method), plain_fit(eigenvalues, method)
    assert fit.alpha == pytest.approx(expected.alpha, rel=1e-9)
    assert fit.distance == pytest.approx(expected.distance, abs=1e-9)
    assert fit.x_min == expected.x_min
    assert fit.tail_size == expected.tail_size


@pytest.mark.parametrize("true_alpha", [1.8, 2.5, 4.0])
@pytest.mark.parametrize("method", OWN_ESTIMATORS)
def test_the_exponent_of_a_power_law_is_recovered(method, true_alpha):
    alpha = fit_power_law(pareto(4000, true_alpha), method).alpha
    assert alpha == pytest.approx(true_alpha, rel=0.05)


@pytest.mark.parametrize("method", SCALE_FREE)
@pytest.mark.parametrize("scale", [2.0**-40, 1e-3, 0.9, 7.0, 1e30])
def test_scale_does_not_matter(method, scale):
    eigenvalues = heavy_tailed(400, 1)
    fit, scaled = fit_power_law(eigenvalues, method), fit_power_law(eigenvalues * scale, method)
    assert scaled.alpha == pytest.approx(fit.alpha, rel=1e-9)
    assert scaled.distance == pytest.approx(fit.distance, abs=1e-9)
    assert scaled.x_min == pytest.approx(fit.x_min * scale, rel=1e-12)
    assert scaled.tail_size == fit.tail_size


@pytest.mark.parametrize("method", OWN_ESTIMATORS)
def test_order_and_input_do_not_matter(method):
    eigenvalues = heavy_tailed(300, 2)
    shuffled = eigenvalues[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    before = shuffled.clone()
    assert fit_power_law(shuffled, method) == fit_power_law(eigenvalues, method)
    assert torch.equal(shuffled, before)


def test_the_published_bound_depends_on_the_scale():
    """Where the peak is below 1.05, eigenvalues far below it may start the tail."""
    eigenvalues = torch.cat([pareto(400, 1.5), torch.linspace(100, 104, 40, dtype=torch.float64)])
    published = [fit_power_law(eigenvalues * scale, "xmin_peak_published") for scale in (1, 1e-3)]
    intended = [fit_power_law(eigenvalues * scale, "xmin_peak") for scale in (1, 1e-3)]
    assert published[0].tail_size < published[1].tail_size
    assert published[0].alpha != pytest.approx(published[1].alpha, rel=1e-3)
    assert intended[0].tail_size == intended[1].tail_size < published[0].tail_size


spectra = st.lists(st.floats(1e-9, 1e9), min_size=3, max_size=80, unique=True)
well_spread = spectra.filter(lambda values: max(values) > 1.001 * min(values))


@pytest.mark.parametrize("method", SCALE_FREE)
@given(values=well_spread, exponent=st.integers(-60, 60))
def test_no_power_of_two_changes_the_exponent(method, values, exponent):
    eigenvalues = torch.tensor(values, dtype=torch.float64)
    fit = fit_power_law(eigenvalues, method)
    scaled = fit_power_law(eigenvalues * 2.0**exponent, method)
    # Equal up to round-off in the distances, which may exchange candidates that tie.
    assert scaled.distance == pytest.approx(fit.distance, abs=1e-6)
    if scaled.tail_size == fit.tail_size:
        assert scaled.alpha == pytest.approx(fit.alpha, rel=1e-6)


@given(values=well_spread)
def test_ks_has_the_smallest_distance_of_all_estimators(values):
    eigenvalues = torch.tensor(values, dtype=torch.float64)
    best = fit_power_law(eigenvalues, "ks").distance
    assert all(
        best <= fit_power_law(eigenvalues, other).distance + 1e-12 for other in OWN_ESTIMATORS
    )


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("method", ["xmin_peak", "ks"])
def test_chunks_do_not_change_the_fit(monkeypatch, rows, method):
    eigenvalues = heavy_tailed(500, 3)
    whole = fit_power_law(eigenvalues, method)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", rows * 500)
    assert fit_power_law(eigenvalues, method) == whole


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("seed", range(4))
def test_dropping_hopeless_starts_does_not_change_the_fit(monkeypatch, kind, seed):
    eigenvalues = torch.cat([SPECTRA[kind](seed + place) for place in range(3)])
    quick = fit_power_law(eigenvalues, "ks")
    monkeypatch.setattr(module, "_FEW", len(eigenvalues))
    assert fit_power_law(eigenvalues, "ks") == quick


@pytest.mark.parametrize("method", OWN_ESTIMATORS)
def test_the_fit_without_checks_is_the_same(method):
    eigenvalues = heavy_tailed(300, 4)
    assert fit_ascending(eigenvalues.sort().values, method) == fit_power_law(eigenvalues, method)


def test_the_standard_error_is_that_of_repeated_samples():
    fits = [fit_power_law(pareto(600, 2.5, seed), "hill") for seed in range(400)]
    spread = torch.tensor([fit.alpha for fit in fits]).std()
    rows = [MatrixQuality("up", (600, 600), *astuple(fit), 600, 600) for fit in fits]
    mean = sum(row.standard_error for row in rows) / len(rows)
    assert mean == pytest.approx(float(spread), rel=0.1)


@pytest.mark.parametrize("method", OWN_ESTIMATORS)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_spectrum_on_the_gpu_gives_the_same_fit(method):
    eigenvalues = heavy_tailed(300, 5)
    assert fit_power_law(eigenvalues.cuda(), method) == fit_power_law(eigenvalues, method)


def test_the_low_bound_is_on_the_eigenvalue_and_not_on_its_log():
    """A tiny spectrum must not let the tail start below 0.95 times the peak."""
    eigenvalues = heavy_tailed(576, 5) * 1e-6
    logs = eigenvalues.log10()
    counts = torch.histc(logs, bins=100)
    peak = 10 ** torch.linspace(logs.min(), logs.max(), 101, dtype=torch.float64)[counts.argmax()]
    x_min = fit_power_law(eigenvalues, "xmin_peak").x_min
    assert 0.95 * peak <= x_min <= 1.5 * peak


def test_an_empty_window_starts_the_tail_at_the_nearest_eigenvalue():
    """Over 300 decades the tallest bin can be wider than the window."""
    eigenvalues = torch.tensor([1e-150, 1e-1, 1e-1, 1e-1, 1e150], dtype=torch.float64)
    fit = fit_power_law(eigenvalues, "xmin_peak")
    assert fit.x_min == pytest.approx(1e-1)
    assert math.isfinite(fit.alpha)
    assert fit.alpha > 1


def test_hill_steps_below_ties_with_the_largest():
    fit = fit_power_law(torch.tensor([1.0, 2.0, 4.0, 4.0, 4.0, 4.0]), "hill")
    assert fit.x_min == 2.0
    assert fit.tail_size == 5


@pytest.mark.parametrize("method", OWN_ESTIMATORS)
@given(
    st.lists(
        st.one_of(st.floats(1e-300, 1e300), st.sampled_from([1.0, 2.0, 1.0 + 2e-16])),
        min_size=3,
        max_size=60,
    ).filter(lambda values: max(values) > 1.001 * min(values))
)
def test_no_spectrum_gives_nan_or_infinity(method, values):
    fit = fit_power_law(torch.tensor(values, dtype=torch.float64), method)
    assert math.isfinite(fit.alpha)
    assert fit.alpha > 1
    assert 0 <= fit.distance <= 1
    assert fit.x_min in values
    assert 2 <= fit.tail_size <= len(values)


def test_an_unknown_method_names_the_choices():
    with pytest.raises(
        ValueError, match=f"unknown estimator 'best': choose one of {', '.join(ESTIMATORS)}"
    ):
        fit_power_law(torch.ones(3), "best")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([2.0] * 5, "all 5 eigenvalues equal 2: no power law"),
        ([2.0, 2.0 + 1e-15, 2.0], "all 3 eigenvalues equal"),
        ([1.0, 2.0], "at least 3 eigenvalues, got 2"),
        ([], "at least 3 eigenvalues, got 0"),
        ([0.0, 1.0, 2.0], "1 of 3 eigenvalues are not positive finite"),
        ([-1.0, 0.0, 1.0, 2.0], "2 of 4 eigenvalues are not positive finite"),
        ([1.0, 2.0, math.nan], "1 of 3"),
        ([1.0, 2.0, math.inf], "1 of 3"),
        ([[1.0, 2.0, 3.0]], r"1-D, not of shape \(1, 3\)"),
    ],
)
@pytest.mark.parametrize("method", OWN_ESTIMATORS)
def test_spectra_without_a_power_law_are_refused(method, values, message):
    with pytest.raises(ValueError, match=message):
        fit_power_law(torch.tensor(values, dtype=torch.float64), method)
