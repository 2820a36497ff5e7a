"""A measurement says how it was made, repeats itself, and knows how far it can be trusted."""

import importlib.metadata
import math
import sys
from dataclasses import replace

import pytest
import torch

from axolotl_alphalora.settings import QualitySettings
from axolotl_alphalora.spectral import (
    Cache,
    measure,
    spectra,
    unit_intervals,
    unit_reliability,
    unit_scores,
)
from axolotl_alphalora.spectral.estimators import TABLE
from axolotl_alphalora.spectral.power_law import PowerLawFit
from helpers.checkpoints import shapes_of, written
from helpers.estimating import OWN_ESTIMATORS


def random(seed, rows=64, columns=96):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def decaying(seed, power):
    """A matrix whose singular values fall off as a power of their rank."""
    left, values, right = torch.linalg.svd(random(seed), full_matrices=False)
    return left @ torch.diag(torch.arange(1, len(values) + 1) ** -power) @ right


def alike(blocks=8):
    """Blocks that differ by chance only."""
    return {f"h.{i}.{kind}": random(10 * i + len(kind)) for i in range(blocks) for kind in KINDS}


def different(blocks=8):
    """Blocks whose spectra fall off more and more steeply."""
    return {
        f"h.{i}.{kind}": decaying(10 * i + len(kind), 0.4 + 0.1 * i)
        for i in range(blocks)
        for kind in KINDS
    }


KINDS = ("q", "up")


@pytest.fixture
def measured(tmp_path):
    def run(weights, settings=None, **options):
        return measure(written(tmp_path, weights), shapes_of(weights), settings, **options)

    return run


def test_a_unit_scores_the_mean_of_its_alphas(measured):
    found = measured(different(3))
    alpha = {row.module: row.alpha for row in found.matrices}
    assert list(alpha) == list(different(3))
    assert found.scores == {
        f"h.{i}": pytest.approx((alpha[f"h.{i}.q"] + alpha[f"h.{i}.up"]) / 2) for i in range(3)
    }


@pytest.mark.parametrize("aggregate", ["median", "parameters"])
@pytest.mark.parametrize("normalize", [False, True])
def test_scores_follow_the_settings(measured, aggregate, normalize):
    settings = QualitySettings("hill", None, aggregate, normalize)
    found = measured(different(3), settings)
    assert found.settings == settings
    assert found.scores == unit_scores(found.matrices, aggregate, normalize)


def test_the_automatic_window_is_the_largest_square_and_is_recorded(measured):
    weights = different(2) | {"h.0.k": random(5, 24, 64), "h.1.k": random(6, 64, 40)}
    seen = []
    found = measured(weights, QualitySettings(window="auto"), progress=seen.append)
    assert found.settings.window == "24x24"
    assert found.spectra.window == (24, 24)
    assert sorted(seen) == sorted(weights)
    again = measured(weights, found.settings)
    assert again.matrices == found.matrices
    for name, weight in weights.items():
        expected = spectra(weight, (24, 24))
        torch.testing.assert_close(found.spectra.values[name], expected)


def test_a_window_that_does_not_fit_is_refused_with_the_matrix(measured):
    with pytest.raises(ValueError, match=r"tensor 'h\.1\.up\.weight' of .*model\.safetensors: "):
        measured(
            {"h.0.up": random(0, 64, 64), "h.1.up": random(1, 8, 64)}, QualitySettings(window=16)
        )


def test_the_source_describes_itself_and_its_weights(measured):
    found = measured(different(2))
    assert found.description == {
        "source": "safetensors",
        "dtype": "float32",
        "revision": None,
        "quantization": None,
        "digest": found.spectra.digest,
    }


@pytest.mark.parametrize("spoil", [None, math.nan])
def test_the_source_is_closed_whatever_happens(tmp_path, spoil, monkeypatch):
    weights = different(1)
    if spoil is not None:
        weights["h.0.q"][0, 0] = spoil
    source, closed = written(tmp_path, weights), []
    monkeypatch.setattr(source, "close", lambda: closed.append(True))
    try:
        measure(source, shapes_of(weights))
    except ValueError:
        assert spoil is not None
    assert closed == [True]


@pytest.fixture
def analysed(monkeypatch):
    """Weightwatcher's analysis replaced by one that notes what it was given."""
    seen = []

    def analyze(weight):
        seen.append(weight)
        if weight[0, 0] == 7:
            raise ValueError("weightwatcher gives no exponent")
        return PowerLawFit(2.0 + len(seen), 0.5, 0.1, 16)

    estimator = replace(TABLE["weightwatcher"], of_matrix=analyze)
    monkeypatch.setitem(TABLE, "weightwatcher", estimator)
    return seen


WEIGHTWATCHER = QualitySettings("weightwatcher")


def test_weightwatcher_analyses_each_whole_matrix_once(measured, analysed, tmp_path):
    weights, cache = different(2), Cache(tmp_path / "cache")
    first = measured(weights, WEIGHTWATCHER, cache=cache)
    assert len(analysed) == 4
    assert all(
        torch.equal(seen, weight) for seen, weight in zip(analysed, weights.values(), strict=True)
    )
    assert [row.alpha for row in first.matrices] == [3.0, 4.0, 5.0, 6.0]
    assert measured(weights, WEIGHTWATCHER, cache=cache).matrices == first.matrices
    assert len(analysed) == 4
    weights["h.1.q"] = random(99)
    measured(weights, WEIGHTWATCHER, cache=cache)
    assert len(analysed) == 5
    assert torch.equal(analysed[-1], weights["h.1.q"])


def test_weightwatcher_is_not_asked_for_other_estimators_or_windows(measured, analysed, tmp_path):
    cache = Cache(tmp_path / "cache")
    measured(different(1), WEIGHTWATCHER, cache=cache)
    del analysed[:]
    others = measured(different(1), QualitySettings("ks"), cache=cache)
    assert not analysed
    assert others.matrices[0].alpha != 3.0


def test_a_matrix_without_an_exponent_of_weightwatchers_is_noted(measured, analysed):
    odd = random(0)
    odd[0, 0] = 7
    found = measured({"h.0.q": odd, "h.1.q": random(1)}, WEIGHTWATCHER)
    assert found.matrices[0].alpha is None
    assert "no power law: weightwatcher gives no exponent" in found.matrices[0].note
    assert found.scores.keys() == {"h.0", "h.1"}


def test_a_missing_weightwatcher_is_an_error_that_says_what_to_install(measured, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setitem(sys.modules, "weightwatcher", None)
    with pytest.raises(ImportError, match="pip install weightwatcher"):
        measured(different(1), WEIGHTWATCHER)


def test_weightwatchers_own_analysis_agrees_with_ks(measured):
    pytest.importorskip("weightwatcher")
    weights = {"h.0.q": decaying(1, 0.6)}
    alphas = [
        measured(weights, QualitySettings(name)).matrices[0].alpha
        for name in ("weightwatcher", "ks")
    ]
    assert alphas[0] == pytest.approx(alphas[1], abs=1e-3)


def test_intervals_with_weightwatcher_are_refused(measured, analysed):
    found = measured(different(1), WEIGHTWATCHER)
    with pytest.raises(ValueError, match="use the estimator ks"):
        unit_intervals(found)


@pytest.mark.usefixtures("simulation")
@pytest.mark.parametrize("window", [None, "24x24"])
@pytest.mark.parametrize("estimator", OWN_ESTIMATORS)
def test_intervals_mostly_hold_the_score_and_repeat_themselves(measured, estimator, window):
    found = measured(different(6), QualitySettings(estimator, window))
    seen = []
    intervals = unit_intervals(found, samples=30, progress=seen.append)
    assert seen == [row.module for row in found.matrices]
    assert list(intervals) == list(found.scores)
    inside = [low <= found.scores[block] <= high for block, (low, high) in intervals.items()]
    assert sum(inside) >= 5
    assert all(low < high for low, high in intervals.values())
    assert unit_intervals(found, samples=30) == intervals
    assert unit_intervals(found, samples=30, seed=1) != intervals


def test_intervals_have_a_block_whose_matrices_have_no_alpha(measured):
    found = measured(different(2) | {"h.2.q": torch.eye(32), "h.2.up": torch.zeros(32, 32)})
    intervals = unit_intervals(found, samples=10)
    assert list(intervals) == ["h.0", "h.1", "h.2"]


@pytest.mark.usefixtures("simulation")
@pytest.mark.parametrize("estimator", ["xmin_peak", "hill", "ks"])
def test_only_blocks_that_differ_are_trusted_to_differ(measured, estimator):
    def trusted(weights):
        found = measured(weights, QualitySettings(estimator))
        intervals = unit_intervals(found, samples=40)
        return unit_reliability(found.settings, found.matrices, found.scores, intervals)

    assert trusted(alike()) < 0.3
    assert trusted(different()) > 0.6


def test_without_intervals_trust_rests_on_the_fits_own_errors(measured):
    settings = QualitySettings("hill")
    found = {weights: measured(weights(), settings) for weights in (alike, different)}
    shares = {
        weights: unit_reliability(settings, each.matrices, each.scores)
        for weights, each in found.items()
    }
    assert shares[alike] < 0.3
    assert shares[different] > 0.8


def test_one_block_alone_has_no_ranking_to_trust(measured):
    found = measured(different(1))
    assert math.isnan(unit_reliability(found.settings, found.matrices, found.scores))
    intervals = unit_intervals(found, samples=5)
    assert math.isnan(unit_reliability(found.settings, found.matrices, found.scores, intervals))
