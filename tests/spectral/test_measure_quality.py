"""Every spectrum gets its fit, and a degenerate one a note and no alpha instead of a number."""

import dataclasses

import pytest
import torch

from axolotl_alphalora.settings import QualitySettings
from axolotl_alphalora.spectral import Spectra, assess, fit_power_law, measure, spectra, spectrum
from axolotl_alphalora.spectral.power_law import PowerLawFit
from helpers.checkpoints import shapes_of, written
from helpers.estimating import OWN_ESTIMATORS


def matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def spectra_of(weights, window=None):
    return Spectra(
        window,
        values={name: spectra(weight, window) for name, weight in weights.items()},
        shapes=shapes_of(weights),
        fingerprints=dict.fromkeys(weights, ""),
    )


def row_of(weight, estimator="xmin_peak", window=None):
    return assess(spectra_of({"h.0.q": weight}, window), estimator)[0]


@pytest.mark.parametrize("estimator", OWN_ESTIMATORS)
def test_rows_are_the_fits_in_the_order_of_the_spectra(estimator):
    weights = {"h.1.up": matrix(48, 32, 1), "h.0.q": matrix(32, 40, 2)}
    rows = assess(spectra_of(weights), estimator)
    assert [row.module for row in rows] == list(weights)
    for row in rows:
        fit = fit_power_law(spectrum(weights[row.module]), estimator)
        assert dataclasses.asdict(row) == {
            "module": row.module,
            "shape": tuple(weights[row.module].shape),
            **dataclasses.asdict(fit),
            "num_eigenvalues": 32,
            "numerical_rank": 32,
            "note": None,
        }
        assert row.standard_error == (fit.alpha - 1) / fit.tail_size**0.5


def test_the_eigenvalues_of_all_windows_take_part_in_one_fit():
    weight = matrix(40, 60)
    rows = spectra(weight, (20, 20))
    row = row_of(weight, "hill", (20, 20))
    assert row.num_eigenvalues == row.numerical_rank == rows.numel()
    assert row.alpha == fit_power_law(rows.flatten(), "hill").alpha
    assert row.shape == (40, 60)


def exactly_low_rank(rank):
    """Small integers, so that not even the product rounds."""
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randint(-4, 5, (32, rank), generator=generator) for _ in range(2))
    return (left @ right.T).float()


def zero_rows():
    weight = matrix(40, 32)
    weight[25:] = 0
    return weight


# What the matrix is: its rank, its number of eigenvalues, whether it has an alpha, its note.
DEGENERATE = {
    "all zero": (
        torch.zeros(32, 48),
        (0, 32, False),
        "all zero",
    ),
    "identity": (
        torch.eye(32),
        (32, 32, False),
        "no power law: all 32 eigenvalues equal 1 to within 5%",
    ),
    "scaled rotation": (
        1e-3 * torch.linalg.qr(matrix(32, 32).double()).Q,
        (32, 32, False),
        "no power law: all 32 eigenvalues equal 1e-06 to within 5%",
    ),
    "bfloat16 rotation": (
        torch.linalg.qr(matrix(32, 32)).Q.bfloat16(),
        (32, 32, False),
        "no power law: all 32 eigenvalues equal 1",
    ),
    "zero rows": (zero_rows(), (25, 32, True), "rank 25 of 32"),
    "exactly low rank": (exactly_low_rank(22), (22, 32, True), "rank 22 of 32"),
    "rank 5": (exactly_low_rank(5), (5, 32, True), "rank 5 of 32; few eigenvalues"),
    "rank 2": (
        exactly_low_rank(2),
        (2, 32, False),
        "rank 2 of 32; no power law: a power law needs at least 3 eigenvalues, got 2",
    ),
    "19 eigenvalues": (matrix(19, 50), (19, 19, True), "few eigenvalues"),
    "20 eigenvalues": (matrix(20, 50), (20, 20, True), None),
    "3 eigenvalues": (matrix(3, 50), (3, 3, True), "few eigenvalues"),
    "2 eigenvalues": (
        matrix(50, 2),
        (2, 2, False),
        "no power law: a power law needs at least 3 eigenvalues, got 2",
    ),
    "1 eigenvalue": (
        matrix(1, 50),
        (1, 1, False),
        "no power law: a power law needs at least 3 eigenvalues, got 1",
    ),
}


@pytest.mark.parametrize("estimator", OWN_ESTIMATORS)
@pytest.mark.parametrize("kind", DEGENERATE)
def test_a_degenerate_matrix_has_its_rank_and_a_note(kind, estimator):
    weight, (rank, number, has_alpha), note = DEGENERATE[kind]
    row = row_of(weight, estimator)
    assert (row.numerical_rank, row.num_eigenvalues) == (rank, number)
    assert (row.note or "").startswith(note or "")
    assert (row.note is None) == (note is None)
    fields = [row.alpha, row.x_min, row.distance, row.tail_size, row.standard_error]
    assert [field is not None for field in fields] == [has_alpha] * 5
    assert not has_alpha or row.alpha > 1


def test_zero_rows_do_not_change_the_alpha_of_the_others():
    weight = zero_rows()
    expected = fit_power_law(spectrum(weight[:25])).alpha
    assert row_of(weight).alpha == pytest.approx(expected, rel=1e-6)


def test_zero_windows_do_not_change_the_alpha_of_the_others():
    weight = matrix(32, 64)
    weight[:, 32:] = 0
    row = row_of(weight, "hill", (32, 32))
    assert row.alpha == pytest.approx(fit_power_law(spectrum(weight[:, :32]), "hill").alpha)
    assert row.numerical_rank == 32 < row.num_eigenvalues
    assert row.note == f"rank 32 of {row.num_eigenvalues}"


def test_another_fit_sees_the_significant_eigenvalues_and_may_fail():
    seen = {}

    def fit(name, eigenvalues):
        seen[name] = len(eigenvalues)
        if name == "h.1.q":
            raise ValueError("not today")
        return PowerLawFit(alpha=3.0, x_min=1.0, distance=0.1, tail_size=16)

    weights = {"h.0.q": zero_rows(), "h.1.q": matrix(32, 32)}
    rows = assess(spectra_of(weights), fit=fit)
    assert seen == {"h.0.q": 25, "h.1.q": 32}
    assert (rows[0].alpha, rows[0].standard_error) == (3.0, 0.5)
    assert (rows[1].alpha, rows[1].note) == (None, "no power law: not today")


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("normalize", [False, True])
def test_degenerate_matrices_leave_every_block_a_score(tmp_path, normalize, window):
    weights = {"h.0.q": matrix(32, 40), "h.0.up": matrix(40, 32), "h.30.q": matrix(32, 40, 3)}
    for block, (weight, _, _) in enumerate(DEGENERATE.values(), start=1):
        weights[f"h.{block}.q"] = weights[f"h.{block}.up"] = weight
    if window is not None:
        weights = {name: weight for name, weight in weights.items() if min(weight.shape) >= 3}
    found = measure(
        written(tmp_path, weights),
        shapes_of(weights),
        QualitySettings("hill", window, normalize=normalize),
    )
    blocks = {name.rpartition(".")[0] for name in weights}
    assert found.scores.keys() == blocks
    assert all(1 < score < 100 for score in found.scores.values())


def test_without_any_alpha_there_is_nothing_to_score(tmp_path):
    weights = {"h.0.q": torch.eye(32), "h.1.q": torch.zeros(32, 32), "h.2.q": matrix(2, 32)}
    with pytest.raises(ValueError, match=r"none of the 3 matrices has an alpha; .*h.0.q.*equal 1"):
        measure(written(tmp_path, weights), shapes_of(weights))
