"""Figures over depth: what is drawn where, and how it is labelled."""

import itertools

import pytest
import torch

from axolotl_alphalora.report.figures import Picture, draw, draw_comparison
from axolotl_alphalora.report.spectra_panels import panels
from axolotl_alphalora.settings import MatrixQuality
from axolotl_alphalora.spectral import Spectra, assess

PLANS = {
    "as given": (5, 4, 3),
    "mola:2 & <more>": (2, 4, 6),
    "sensitivity": (4 + 1 / 3, 4 + 1 / 3, 3 + 1 / 3),
}


def picture(kinds=("q_proj", "up_proj"), blocks=3, **changes):
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.{kind}" for i in range(blocks) for kind in kinds]
    values = {name: torch.rand(1, 40, generator=generator).exp().sort().values for name in names}
    spectra = Spectra(None, values, dict.fromkeys(names, (40, 60)), dict.fromkeys(names, ""))
    settings = {
        "title": "A <model> & more",
        "scores": {f"model.layers.{i}": 4.0 - i for i in range(blocks)},
        "intervals": {f"model.layers.{i}": (3.5 - i, 4.5 - i) for i in range(blocks)},
        "experts": {f"model.layers.{i}": 5 - i for i in range(blocks)},
        "matrices": assess(spectra),
        "spectra": spectra,
    }
    return Picture(**(settings | changes))


def chosen(drawn):
    return panels(drawn.spectra, drawn.matrices, drawn.scores)


def compared(plans):
    """The figure of plans, given by their numbers."""
    return draw_comparison(
        {
            label: {f"model.layers.{i}": number for i, number in enumerate(numbers)}
            for label, numbers in plans.items()
        },
        "Plans",
    )


def test_alpha_intervals_and_experts_are_drawn_over_depth():
    drawn = picture(spectra=None)
    upper, lower = draw(drawn).axes
    assert upper.lines[0].get_ydata() == pytest.approx([4.0, 3.0, 2.0])
    ranges = [list(part.get_segments()[0][:, 1]) for part in upper.collections]
    assert ranges == [[3.5, 4.5], [2.5, 3.5], [1.5, 2.5]]
    assert [bar.get_height() for bar in lower.patches] == [5, 4, 3]


def test_spectra_of_the_ends_are_drawn_with_their_fitted_tails():
    drawn = picture()
    panel = draw(drawn).axes[2]
    row = drawn.matrices[0]
    points, fit, mark = panel.lines[:3]
    assert panel.get_xscale() == panel.get_yscale() == "log"
    assert panel.get_title() == "q_proj"
    assert points.get_xdata()[0] == pytest.approx(float(drawn.spectra.values[row.module].min()))
    (start, top), (high, low) = fit.get_xdata(), fit.get_ydata()
    assert (start, high) == pytest.approx((row.x_min, row.tail_size / 40))
    assert low == pytest.approx(high * (top / start) ** (1 - row.alpha))
    assert mark.get_xdata() == [row.x_min]
    assert {
        block for rows in chosen(drawn).values() for block in [r.module[:14] for r in rows]
    } == {
        "model.layers.0",
        "model.layers.2",
    }


def test_a_mixture_of_many_matrices_is_not_drawn_whole():
    many = picture(kinds=[f"experts.{i}.up_proj" for i in range(20)], blocks=2)
    assert len(chosen(many)) == 8
    assert len([axes for axes in draw(many).axes if axes.get_visible()]) == 2 + 8


def test_a_matrix_without_a_power_law_is_drawn_without_a_fit():
    drawn = picture(blocks=1)
    bare = [
        MatrixQuality(row.module, row.shape, None, None, None, None, 40, 40, "none")
        for row in drawn.matrices
    ]
    panel = draw(picture(blocks=1, matrices=bare)).axes[2]
    assert len(panel.lines) == 1


@pytest.mark.parametrize("scores", [{"model.layers.0": None, "model.layers.1": None}, {}])
def test_without_any_score_experts_alone_are_drawn(scores):
    drawn = Picture("even", scores, experts={"model.layers.0": 2, "model.layers.1": 4.5})
    (axes,) = draw(drawn).axes
    assert [bar.get_height() for bar in axes.patches] == [2, 4.5]
    assert axes.get_ylabel() == "experts (mean)"


@pytest.mark.parametrize("name", ["alpha", "share"])
def test_only_alphas_are_said_to_be_of_training(name):
    upper, lower = draw(picture(spectra=None, score_name=name)).axes
    assert upper.get_ylabel() == name and lower.get_ylabel() == "experts"
    assert ("less trained" in upper.get_title(loc="left")) == (name == "alpha")


def test_blocks_without_a_score_and_of_several_towers_can_be_drawn():
    scores = {"vision.layers.0": None, "text.layers.0": 3.0, "lm_head": 2.0}
    upper, lower = draw(Picture("towers", scores, experts=dict.fromkeys(scores, 1))).axes
    assert [label.get_text() for label in lower.get_xticklabels()] == ["0", "0", "lm_head"]
    assert lower.get_xlabel() == "block of vision.layers, then of text.layers"
    # The bounds between the stacks, in both panels.
    for axes in (upper, lower):
        bounds = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"]
        assert bounds == [0.5, 1.5]


def test_labels_of_many_blocks_keep_their_distance():
    names = [f"vision.{i}" for i in range(28)] + [f"text.{i}" for i in range(52)]
    axes = draw(Picture("deep", {}, experts=dict.fromkeys(names, 1))).axes[0]
    ticks = [int(tick) for tick in axes.get_xticks()]
    assert {0, 28} <= set(ticks) and len(ticks) <= 32
    assert min(after - tick for tick, after in itertools.pairwise(ticks)) >= 3
    for tick, label in zip(ticks, axes.get_xticklabels(), strict=True):
        assert names[tick].endswith(f".{label.get_text()}")


def test_plans_are_drawn_on_one_scale_with_the_first_ones_outline():
    panels = compared(PLANS).axes
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == [
        "as given, 12 in all",
        "mola:2 & <more>, 12 in all (line: as given)",
        "sensitivity, 12 in all (line: as given)",
    ]
    for axes, (label, numbers) in zip(panels, PLANS.items(), strict=True):
        outlines = [part for part in axes.patches if hasattr(part, "get_data")]
        bars = [part.get_height() for part in axes.patches if part not in outlines]
        assert bars == list(numbers)
        assert [list(part.get_data().values) for part in outlines] == (
            [] if label == "as given" else [[5, 4, 3]]
        )
        assert axes.get_ylim() == panels[0].get_ylim()
    assert [text.get_text() for text in panels[2].texts] == ["4.3", "4.3", "3.3"]


@pytest.mark.parametrize(("number", "label"), [(2, "experts"), (3, "experts (mean)")])
def test_means_are_called_means(number, label):
    plans = dict(itertools.islice(PLANS.items(), number))
    assert compared(plans).get_supylabel() == label


def test_numbers_are_written_in_every_panel_or_in_none():
    few, many = [5] * 60, [12] * 60
    assert all(len(axes.texts) == 60 for axes in compared({"a": few, "b": few}).axes)
    assert not any(axes.texts for axes in compared({"few": few, "many": many}).axes)


def test_blocks_are_matched_by_name_and_must_be_the_same():
    first = {"model.layers.0": 1, "model.layers.1": 2}
    backwards = {"model.layers.1": 4, "model.layers.0": 3}
    bars = draw_comparison({"first": first, "backwards": backwards}, "").axes[1].patches
    assert [bar.get_height() for bar in bars[:2]] == [3, 4]
    with pytest.raises(ValueError, match="other and first are plans of different blocks"):
        draw_comparison({"first": first, "other": first | {"model.layers.2": 3}}, "")
