"""Intervals and tests against other implementations and simulations."""

import numpy as np
import pytest
from scipy import stats as reference

from benchmarks.study.answers import wilson
from benchmarks.study.stats import holm, interval, paired_p, pairs_for, visible


def test_the_paired_test():
    a, b = np.random.default_rng(0).normal(size=(2, 6))
    assert paired_p(list(a - b)) == pytest.approx(reference.ttest_rel(a, b).pvalue)
    assert paired_p([1.0]) is None and paired_p([1.0, 1.0]) is None


def test_wilsons_interval():
    expected = reference.binomtest(7, 40).proportion_ci(method="wilson")
    assert wilson(7, 40) == pytest.approx((expected.low, expected.high), rel=1e-6)


def test_holm_by_hand():
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5})
    assert found == pytest.approx({"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.5})


@pytest.mark.parametrize(("pairs", "level"), [(2, 0.05), (5, 0.05), (5, 0.002), (12, 0.01)])
def test_a_visible_difference_is_found_with_the_power_that_is_said(pairs, level):
    deviation = 2.0
    difference = visible(deviation, pairs, level)
    draws = np.random.default_rng(1).normal(difference, deviation, size=(20_000, pairs))
    found = reference.ttest_1samp(draws, 0, axis=1).pvalue < level
    assert found.mean() == pytest.approx(0.8, abs=0.01)
    assert pairs_for(deviation, difference * 1.0001, level=level) == pairs
    assert pairs_for(deviation, difference * 0.99, level=level) == pairs + 1
    assert pairs_for(1.0, 1e-6) is None


def test_the_bootstrap_covers_the_true_difference():
    random, covered = np.random.default_rng(2), 0
    labels = np.full(50, 10)
    for _ in range(100):
        by_seed, by_row = random.normal(0, 0.2, (10, 1)), random.normal(0, 1, (1, 50))
        low, high = interval(10 * (0.3 + by_seed + by_row), labels, resamples=500)
        covered += low <= 0.3 <= high
    assert 85 <= covered <= 99


def test_the_bootstrap_gives_the_same_interval_again():
    differences = np.random.default_rng(3).normal(size=(5, 20))
    labels = np.arange(1, 21)
    assert interval(differences, labels) == interval(differences, labels)
