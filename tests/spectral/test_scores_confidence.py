"""The bootstrap repeats the estimate, and says as much about noise as it claims."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axolotl_alphalora.spectral.estimators import fit_power_law
from axolotl_alphalora.spectral.scores import bootstrap_alphas, interval, reliability
from axolotl_alphalora.spectral.spectrum import pool, spectra, spectrum
from helpers.estimating import OWN_ESTIMATORS


def pareto(size, alpha, seed=0):
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(size, generator=generator, dtype=torch.float64)
    return (1 - uniform) ** (-1 / (alpha - 1))


def matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", OWN_ESTIMATORS)
@pytest.mark.parametrize("window", [None, (16, 16)])
def test_equal_seeds_give_equal_samples(method, window):
    rows = spectra(matrix(32, 64), window)
    shape = window or (32, 64)
    samples = bootstrap_alphas(rows, shape, method, samples=20, seed=3)
    assert samples.shape == (20,)
    assert samples.dtype == torch.float64
    assert torch.equal(samples, bootstrap_alphas(rows, shape, method, samples=20, seed=3))
    assert not torch.equal(samples, bootstrap_alphas(rows, shape, method, samples=20, seed=4))


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    bootstrap_alphas(pareto(50, 2.5)[None], (50, 50), samples=5)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("method", ["hill", "ks"])
def test_fewer_eigenvalues_give_a_wider_interval(method):
    widths = []
    for size in (60, 240, 960):
        samples = bootstrap_alphas(pareto(size, 2.5)[None], (size, size), method)
        low, high = interval(samples)
        widths.append(high - low)
    assert widths[0] > 1.3 * widths[1] > 1.3**2 * widths[2]


@pytest.mark.usefixtures("simulation")
def test_the_interval_covers_the_true_exponent_as_often_as_it_says():
    inside = 0
    for seed in range(150):
        samples = bootstrap_alphas(pareto(200, 2.5, seed)[None], (200, 200), "hill", seed=seed)
        low, high = interval(samples, level=0.8)
        inside += low <= 2.5 <= high
    # 80 % of 150, within three binomial standard deviations.
    assert 105 <= inside <= 135


@pytest.mark.usefixtures("simulation")
def test_windows_know_the_spread_over_fresh_matrices():
    """Eigenvalues of one matrix repel each other, so resampling them one by one overstates it."""
    window, shape = (48, 48), (144, 384)
    weights = [matrix(*shape, seed) for seed in range(30)]
    windowed = [spectra(weight, window) for weight in weights]
    alphas = torch.tensor([fit_power_law(pool(rows, window), "hill").alpha for rows in windowed])
    errors = torch.stack(
        [bootstrap_alphas(rows, window, "hill", samples=50).std() for rows in windowed[:10]]
    )
    assert 0.6 < float(errors.mean() / alphas.std()) < 1.8
    plain = torch.tensor([fit_power_law(spectrum(weight), "hill").alpha for weight in weights])
    one_by_one = bootstrap_alphas(spectra(weights[0]), shape, "hill")
    assert float(one_by_one.std() / plain.std()) > 3


def test_resamples_without_a_power_law_are_drawn_again():
    """A third of the resamples of these three eigenvalues holds one value only."""
    samples = bootstrap_alphas(torch.tensor([[1.0, 1.0, 2.0]]), (3, 3), "hill", samples=200)
    assert samples.isfinite().all()
    assert (samples > 1).all()
    zero_window = torch.tensor([[0.0, 0.0], [1.0, 2.0], [1.0, 4.0]])
    assert bootstrap_alphas(zero_window, (2, 2), "hill").isfinite().all()


@pytest.mark.parametrize(
    ("rows", "keywords", "message"),
    [
        ([1.0, 2.0, 3.0], {}, r"of shape \(W, n\), not \(3,\)"),
        ([[1.0, 2.0, 3.0]], {"samples": 0}, "at least 1, not 0"),
        ([[1.0, 2.0, 3.0]], {"method": "best"}, "unknown estimator 'best'"),
        ([[2.0, 2.0, 2.0]], {}, "all 3 eigenvalues equal 2"),
        ([[0.0, 0.0, 0.0]], {}, "at least 3 eigenvalues, got 0"),
    ],
)
def test_what_cannot_be_resampled_is_refused(rows, keywords, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_alphas(torch.tensor(rows), (3, 3), **keywords)


def test_the_interval_holds_its_share_of_the_samples():
    samples = torch.arange(1001, dtype=torch.float64)
    assert interval(samples.flip(0)) == pytest.approx((25, 975))
    assert interval(samples, level=0.5) == pytest.approx((250, 750))
    for level in (0, 1, math.nan):
        with pytest.raises(ValueError, match="a level between 0 and 1"):
            interval(samples, level)
    with pytest.raises(ValueError, match="0 samples"):
        interval(torch.tensor([]))


@pytest.mark.parametrize("noise", [0.2, 1.0, 2.0])
def test_reliability_is_the_correlation_of_repetitions(noise):
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(4000, generator=generator)
    first, second = truth + noise * torch.randn(2, 4000, generator=generator)
    expected = float(torch.corrcoef(torch.stack([first, second]))[0, 1])
    found = reliability(first.tolist(), [noise] * 4000)
    assert found == pytest.approx(expected, abs=0.05)


@given(st.lists(st.tuples(st.floats(1, 20), st.floats(0, 50)), min_size=2))
def test_reliability_is_a_share(pairs):
    scores, errors = zip(*pairs, strict=True)
    assert 0 <= reliability(scores, errors) <= 1


def test_reliability_of_special_cases():
    assert reliability([2.0, 3.0], [0.0, 0.0]) == 1
    assert reliability([2.0, 2.0], [0.0, 0.0]) == 0
    assert math.isnan(reliability([2.0], [0.1]))
    with pytest.raises(ValueError):
        reliability([2.0, 3.0], [0.1])


@pytest.mark.usefixtures("simulation")
@pytest.mark.parametrize(("window", "least", "most"), [(None, 3, 10), ((48, 48), 0.5, 1.5)])
def test_windows_judge_the_noise_of_hill_and_single_eigenvalues_overstate_it(window, least, most):
    """The eigenvalues of one matrix repel each other: as independent draws they look noisier."""
    alphas, errors = [], []
    for seed in range(30):
        rows = spectra(matrix(96, 192, seed), window)
        shape = window or (96, 192)
        alphas.append(fit_power_law(pool(rows, shape), "hill").alpha)
        errors.append(float(bootstrap_alphas(rows, shape, "hill", samples=30).std()))
    claimed = sum(errors) / len(errors)
    assert least < claimed / float(torch.tensor(alphas).std()) < most
