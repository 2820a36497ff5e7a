"""Blocks are scored over the same kinds of matrices everywhere."""

import itertools
import math
from dataclasses import dataclass
from statistics import fmean, median, pstdev

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from axolotl_alphalora.settings import AGGREGATES
from axolotl_alphalora.spectral.scores import unit_errors, unit_scores

SHAPES = {"attn.q": (4, 4), "attn.k": (2, 4), "mlp.up": (16, 4)}
BLOCKS = 12


@dataclass
class Row:
    module: str
    shape: tuple[int, int]
    alpha: float | None
    numerical_rank: int = 100


def rows(alphas):
    """Return measured matrices from {block: {kind: alpha}}."""
    return [
        Row(f"model.layers.{block}.{kind}", SHAPES[kind], alpha)
        for block, kinds in alphas.items()
        for kind, alpha in kinds.items()
    ]


@st.composite
def models(draw, smallest=1.05):
    alpha = st.floats(smallest, 30)
    return {
        block: {kind: draw(alpha) for kind in SHAPES} for block in range(draw(st.integers(2, 12)))
    }


TWO = {0: {"attn.q": 2.0, "attn.k": 3.0, "mlp.up": 7.0}, 1: {"attn.q": 4.0, "mlp.up": 5.0}}


@pytest.mark.parametrize(
    ("aggregate", "first", "second"),
    [
        ("mean", 4.0, 4.5),
        ("median", 3.0, 4.5),
        ("parameters", (2 * 16 + 3 * 8 + 7 * 64) / 88, (4 * 16 + 5 * 64) / 80),
    ],
)
def test_a_unit_scores_the_aggregate_of_its_alphas(aggregate, first, second):
    assert unit_scores(rows(TWO), aggregate) == pytest.approx(
        {"model.layers.0": first, "model.layers.1": second}
    )


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("normalize", [False, True])
@given(alphas=models())
def test_order_does_not_matter_and_blocks_come_in_natural_order(aggregate, normalize, alphas):
    scores = unit_scores(rows(alphas), aggregate, normalize)
    assert list(scores) == [f"model.layers.{block}" for block in sorted(alphas)]
    backwards = unit_scores(rows(alphas)[::-1], aggregate, normalize)
    assert list(backwards) == list(scores)
    assert backwards == pytest.approx(scores, rel=1e-9)


@pytest.mark.usefixtures("simulation")
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("normalize", [False, True])
@given(alphas=models(), data=st.data())
def test_scores_stay_within_what_an_exponent_can_be(aggregate, normalize, alphas, data):
    for kinds in alphas.values():
        for kind in kinds:
            if data.draw(st.booleans()):
                kinds[kind] = None
    measured = rows(alphas)
    assume(any(row.alpha is not None for row in measured))
    scores = unit_scores(measured, aggregate, normalize)
    assert len(scores) == len(alphas)
    assert all(math.isfinite(score) and score >= 1 for score in scores.values())


def test_normalised_alphas_have_one_mean_and_spread_for_all_kinds():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, BLOCKS, generator=generator)
    alphas = {
        block: {
            "attn.q": 1.7 + 0.02 * float(noise[0, block]),
            "attn.k": 4.0 + 0.1 * float(noise[1, block]),
            "mlp.up": 9.0 + 1.0 * float(noise[2, block]),
        }
        for block in range(BLOCKS)
    }
    kinds = {kind: [alphas[block][kind] for block in range(BLOCKS)] for kind in SHAPES}
    centre = fmean(fmean(values) for values in kinds.values())
    spread = fmean(pstdev(values) for values in kinds.values())
    expected = [
        centre + spread * fmean((alphas[b][k] - fmean(v)) / pstdev(v) for k, v in kinds.items())
        for b in range(BLOCKS)
    ]
    scores = list(unit_scores(rows(alphas), normalize=True).values())
    assert scores == pytest.approx(expected, rel=1e-9)
    assert fmean(scores) == pytest.approx(centre)
    # What one kind says is no longer drowned by another's larger spread.
    assert torch.corrcoef(torch.tensor([scores, kinds["attn.q"]]))[0, 1] > 0.4
    plain = list(unit_scores(rows(alphas)).values())
    assert torch.corrcoef(torch.tensor([plain, kinds["mlp.up"]]))[0, 1] > 0.99


@given(alphas=models(), factor=st.floats(0.5, 3), shift=st.floats(0, 50))
def test_normalised_ranks_do_not_depend_on_the_scale_of_one_kind(alphas, factor, shift):
    kinds = {kind: [block[kind] for block in alphas.values()] for kind in SHAPES}
    assume(all(max(values) - min(values) > 1e-3 for values in kinds.values()))
    # Far from the floor of 1, where the map is no longer linear.
    first = {b: {kind: 90 + v for kind, v in row.items()} for b, row in alphas.items()}
    second = {b: row | {"mlp.up": factor * row["mlp.up"] + shift} for b, row in first.items()}
    before, after = (list(unit_scores(rows(x), normalize=True).values()) for x in (first, second))
    for i, j in itertools.combinations(range(len(before)), 2):
        if abs(before[i] - before[j]) > 1e-6:
            assert (before[i] > before[j]) == (after[i] > after[j])


def test_a_kind_without_spread_says_nothing_when_normalised():
    alphas = {block: {"attn.q": 1.1, "mlp.up": 5.0 + block} for block in range(4)}
    alphas[0]["attn.k"] = 30.0
    scores = list(unit_scores(rows(alphas), normalize=True).values())
    centre = fmean([1.1, 6.5, 30.0])
    spread = fmean([0.0, pstdev([5, 6, 7, 8]), 0.0])
    z = [(value - 6.5) / pstdev([5, 6, 7, 8]) for value in (5, 6, 7, 8)]
    assert scores[1:] == pytest.approx([centre + spread * value / 2 for value in z[1:]])
    assert scores[0] == pytest.approx(centre + spread * z[0] / 3)


def test_a_normalised_alpha_is_at_least_one():
    alphas = {block: {"attn.q": 1.01, "mlp.up": 1.01} for block in range(30)}
    alphas[0] = {"attn.q": 1.01 + 1e-3, "mlp.up": 2000.0}
    alphas[1]["attn.q"] = 1.01 - 5e-3
    scores = unit_scores(rows(alphas), normalize=True)
    assert scores["model.layers.1"] < min(
        score for block, score in scores.items() if block != "model.layers.1"
    )
    assert scores["model.layers.1"] >= 1


@pytest.mark.parametrize("normalize", [False, True])
def test_a_missing_alpha_counts_with_its_kinds_mean_over_the_other_blocks(normalize):
    alphas = {block: {"attn.q": 2.0 + block, "mlp.up": 5.0 - block} for block in range(4)}
    filled = {block: dict(kinds) for block, kinds in alphas.items()}
    alphas[3]["attn.q"], filled[3]["attn.q"] = None, fmean([2.0, 3.0, 4.0])
    scores = unit_scores(rows(alphas), normalize=normalize)
    if not normalize:
        assert scores == pytest.approx(unit_scores(rows(filled)))
    else:
        centre = fmean([3.0, 3.5])
        spread = fmean([pstdev([2, 3, 4]), pstdev([5, 4, 3, 2])])
        z = (0 + (2.0 - 3.5) / pstdev([5, 4, 3, 2])) / 2
        assert scores["model.layers.3"] == pytest.approx(centre + spread * z)


def test_a_kind_without_any_alpha_is_left_out():
    alphas = {block: {"attn.q": 2.0 + block, "mlp.up": None} for block in range(3)}
    only = {block: {"attn.q": 2.0 + block} for block in range(3)}
    assert unit_scores(rows(alphas)) == unit_scores(rows(only))
    assert unit_scores(rows(alphas), "parameters") == unit_scores(rows(only), "parameters")


def test_an_exponent_of_a_few_eigenvalues_counts_with_its_kind_s_mean_or_not_at_all():
    found = [
        Row("h.0.mlp.up", (64, 64), 4.0),
        Row("h.0.router", (4, 64), 1383.0, numerical_rank=4),
        Row("h.1.mlp.up", (64, 64), 5.0),
        Row("h.1.router", (4, 64), 2.0, numerical_rank=4),
    ]
    assert unit_scores(found) == {"h.0": 4.0, "h.1": 5.0}
    found[1].numerical_rank = 20
    assert unit_scores(found) == {"h.0": (4 + 1383) / 2, "h.1": (5 + 1383) / 2}
    for row in found:
        row.numerical_rank = 4
    assert unit_scores(found) == {"h.0": (4 + 1383) / 2, "h.1": (5 + 2) / 2}, "a tiny model"


def test_a_block_without_any_alpha_gets_the_mean_of_the_others():
    alphas = {block: {"attn.q": 2.0 + block} for block in range(3)}
    alphas[3] = {"mlp.up": None}
    scores = unit_scores(rows(alphas))
    assert scores["model.layers.3"] == pytest.approx(3.0)
    assert list(scores)[-1] == "model.layers.3"


def test_modules_outside_any_block_are_kinds_of_their_own():
    heads = [Row("score", (4, 4), 2.0), Row("pooler", (4, 4), None), Row("h.0.q", (4, 4), 4.0)]
    assert unit_scores(heads) == {"h.0": 4.0, "pooler": 3.0, "score": 2.0}


@pytest.mark.parametrize("measured", [[], [Row("h.0.q", (4, 4), None)]])
def test_without_any_alpha_there_are_no_scores(measured):
    with pytest.raises(ValueError, match="no matrix has a power-law exponent"):
        unit_scores(measured)
    with pytest.raises(ValueError, match="no matrix has a power-law exponent"):
        unit_errors(measured, {})


def test_an_unknown_aggregate_names_the_choices():
    with pytest.raises(ValueError, match="'mode': choose one of mean, median, parameters"):
        unit_scores(rows(TWO), "mode")


@pytest.mark.usefixtures("simulation")
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("normalize", [False, True])
def test_the_error_is_the_spread_of_repeated_scores(aggregate, normalize):
    generator = torch.Generator().manual_seed(0)
    base = {
        block: {
            kind: 10 + place + float(torch.randn(1, generator=generator))
            for place, kind in enumerate(SHAPES)
        }
        for block in range(BLOCKS)
    }
    errors = {row.module: 0.05 * (1 + len(row.module) % 3) for row in rows(base)}

    def repeat():
        noisy = rows(base)
        for row in noisy:
            row.alpha += errors[row.module] * float(torch.randn(1, generator=generator))
        return list(unit_scores(noisy, aggregate, normalize).values())

    spreads = torch.tensor([repeat() for _ in range(400)]).std(dim=0)
    found = torch.tensor(list(unit_errors(rows(base), errors, aggregate, normalize).values()))
    # The median has the mean's error, by rule: it only keeps the order of magnitude.
    tolerance = 0.2 if aggregate != "median" else 1.0
    assert float((found / spreads).log().abs().max()) < tolerance


def test_missing_errors_follow_the_rule():
    alphas = {block: {"attn.q": 2.0 + block, "mlp.up": 5.0} for block in range(3)}
    names = [row.module for row in rows(alphas)]
    errors = {names[0]: 0.3, names[2]: 0.4}
    typical = math.sqrt((0.09 + 0.16) / 2)
    assert unit_errors(rows(alphas), errors) == pytest.approx(
        {"model.layers.0": 0.3, "model.layers.1": 0.4, "model.layers.2": typical}
    )
    alphas[3] = {"mlp.up": 5.0}
    assert unit_errors(rows(alphas), errors)["model.layers.3"] == pytest.approx(
        math.sqrt((0.09 + 0.16 + typical**2) / 3)
    )
    with pytest.raises(ValueError, match="no matrix has a standard error"):
        unit_errors(rows(alphas), {})


def test_the_error_of_an_exponent_that_does_not_count_does_not_count():
    few = Row("h.0.q", (64, 64), 900.0, numerical_rank=4)
    found = [few, Row("h.1.q", (64, 64), 4.0), Row("h.2.q", (64, 64), 5.0)]
    errors = {"h.0.q": 345.0, "h.1.q": 0.3, "h.2.q": 0.4}
    typical = math.sqrt((0.3**2 + 0.4**2) / 2)
    assert unit_errors(found, errors) == pytest.approx({"h.0": typical, "h.1": 0.3, "h.2": 0.4})


def test_the_median_is_the_plain_one():
    alphas = {0: {"attn.q": 2.0, "attn.k": 9.0, "mlp.up": 3.0}}
    assert unit_scores(rows(alphas), "median") == {"model.layers.0": median([2.0, 9.0, 3.0])}


def test_the_projections_of_two_towers_are_two_kinds():
    """A vision tower's alphas must not stand in for the text model's."""
    found = [
        Row(f"{tower}.layers.{block}.attn.q", SHAPES["attn.q"], alpha)
        for tower, alphas in {"vision": (9.0, 10.0, 11.0), "text": (2.0, None, 4.0)}.items()
        for block, alpha in enumerate(alphas)
    ]
    assert unit_scores(found)["text.layers.1"] == pytest.approx(3.0)
    normalised = unit_scores([row for row in found if row.alpha], normalize=True)
    assert normalised["vision.layers.1"] == pytest.approx(normalised["vision.layers.0"], rel=0.5)
    assert normalised["text.layers.0"] < normalised["vision.layers.1"] < normalised["text.layers.2"]
