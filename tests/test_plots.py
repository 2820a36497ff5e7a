"""Pictures: every kind of file, what is in them, and that pages load nothing."""

import itertools
import json
import re
import sys
from html.parser import HTMLParser

import pytest
import torch

from axolotl_alphalora.plots import (
    SUFFIXES,
    Picture,
    Series,
    check_plot,
    save_comparison,
    save_plot,
)
from axolotl_alphalora.plots.comparison import draw_comparison
from axolotl_alphalora.plots.curves import panels
from axolotl_alphalora.plots.figure import draw
from axolotl_alphalora.spectral import MatrixQuality, Spectra, assess

HEADS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".html": b"<!doctype html>"}


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
        "notes": ["alpha < 2 & so on"],
        "document": {"blocks": ["</script>"], "alpha": 4.0},
    }
    return Picture(**(settings | changes))


def series(label, *numbers, scores=()):
    names = [f"model.layers.{i}" for i in range(len(numbers))]
    return Series(
        label,
        dict(zip(names, numbers, strict=True)),
        dict(zip(names, scores, strict=True)) if scores else {},
    )


PLANS = (
    series("as given", 5, 4, 3, scores=(4.0, 3.5, None)),
    series("mola:2 & <more>", 2, 4, 6),
    series("sensitivity", 4 + 1 / 3, 4 + 1 / 3, 3 + 1 / 3, scores=(0.052, 0.031, 0.0304)),
)
SAVING = {
    "picture": lambda path: save_plot(picture(), path),
    "comparison": lambda path: save_comparison(PLANS, path, "Plans"),
}


@pytest.mark.parametrize("what", SAVING)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_file_is_drawn_and_drawn_the_same_again(tmp_path, suffix, what):
    path = tmp_path / "new" / f"plan{suffix}"
    SAVING[what](path)
    content = path.read_bytes()
    assert content.startswith(HEADS[suffix])
    SAVING[what](path)
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == [path.name]


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []
        self.cells = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.cells.append(data)


def check_page(text, document):
    """Check that a page loads nothing and holds its document; returns its elements."""
    page = Elements()
    page.feed(text)
    tags = {tag for tag, _ in page.found}
    assert "svg" in tags and not tags & {"link", "img", "iframe", "object", "image"}
    for _, attributes in page.found:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action"):
                assert value.startswith("#")
    assert not re.search(r"url\((?!#)|@import", text)
    numbers = re.search(r'<script type="application/json" id="numbers">(.*?)</script>', text)
    assert json.loads(numbers[1]) == document
    return page


def rows(text, number=0):
    """Return the cells of a page's table, row by row, as they are written."""
    table = re.findall(r"<table>.*?</table>", text, flags=re.DOTALL)[number]
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in table.split("</tr>")][:-1]


def test_a_page_holds_all_and_loads_nothing(tmp_path):
    drawn = picture()
    save_plot(drawn, tmp_path / "plan.html")
    text = (tmp_path / "plan.html").read_text()
    page = check_page(text, drawn.document)
    for row in drawn.matrices:
        assert row.module in page.cells and f"{row.alpha:.3f}" in page.cells
    assert "alpha < 2 & so on" in page.cells
    assert rows(text)[:2] == [
        ["block", "alpha", "95 % range", "experts"],
        ["model.layers.0", "4.000", "3.500 - 4.500", "5"],
    ]


def test_a_page_of_shares_and_means_names_them_and_shows_their_digits(tmp_path):
    names = ["model.layers.0", "model.layers.1"]
    drawn = Picture(
        "shares",
        dict(zip(names, (0.00512, None), strict=True)),
        experts=dict(zip(names, (4 + 2 / 7, 3), strict=True)),
        score_name="share of squared gradients",
        number_name="rank / 8",
    )
    save_plot(drawn, tmp_path / "plan.html")
    text = (tmp_path / "plan.html").read_text()
    assert rows(text) == [
        ["block", "share of squared gradients", "rank / 8"],
        [names[0], "0.00512", "4.3"],
        [names[1], "-", "3.0"],
    ]
    assert "alpha" not in text and "matrices" not in text


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
        block for rows in panels(drawn).values() for block in [r.module[:14] for r in rows]
    } == {
        "model.layers.0",
        "model.layers.2",
    }


def test_a_mixture_of_many_matrices_is_not_drawn_whole():
    many = picture(kinds=[f"experts.{i}.up_proj" for i in range(20)], blocks=2)
    assert len(panels(many)) == 8
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
def test_without_any_score_experts_alone_are_drawn(tmp_path, scores):
    drawn = Picture("even", scores, experts={"model.layers.0": 2, "model.layers.1": 4.5})
    (axes,) = draw(drawn).axes
    assert [bar.get_height() for bar in axes.patches] == [2, 4.5]
    assert axes.get_ylabel() == "experts (mean)"
    save_plot(drawn, tmp_path / "plan.html")
    text = (tmp_path / "plan.html").read_text()
    assert rows(text)[0] == ["block", "experts"] and "alpha" not in text


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
    panels = draw_comparison(PLANS, "Plans").axes
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == [
        "as given, 12 in all",
        "mola:2 & <more>, 12 in all (line: as given)",
        "sensitivity, 12 in all (line: as given)",
    ]
    for axes, plan in zip(panels, PLANS, strict=True):
        outlines = [part for part in axes.patches if hasattr(part, "get_data")]
        bars = [part.get_height() for part in axes.patches if part not in outlines]
        assert bars == list(plan.numbers.values())
        assert [list(part.get_data().values) for part in outlines] == (
            [] if plan is PLANS[0] else [[5, 4, 3]]
        )
        assert axes.get_ylim() == panels[0].get_ylim()
    assert [text.get_text() for text in panels[2].texts] == ["4.3", "4.3", "3.3"]


@pytest.mark.parametrize(
    ("plans", "label"),
    [(PLANS[:2], "experts"), (PLANS, "experts (mean)")],
    ids=["whole", "means"],
)
def test_means_are_called_means(plans, label):
    assert draw_comparison(plans, "Plans").get_supylabel() == label


def test_numbers_are_written_in_every_panel_or_in_none():
    few, many = series("few", *[5] * 60), series("many", *[12] * 60)
    assert all(len(axes.texts) == 60 for axes in draw_comparison([few, few], "").axes)
    assert not any(axes.texts for axes in draw_comparison([few, many], "").axes)


def test_blocks_are_matched_by_name_and_must_be_the_same(tmp_path):
    first = series("first", 1, 2)
    backwards = Series("backwards", {"model.layers.1": 4, "model.layers.0": 3})
    bars = draw_comparison([first, backwards], "").axes[1].patches
    assert [bar.get_height() for bar in bars[:2]] == [3, 4]
    with pytest.raises(ValueError, match="other and first are plans of different blocks"):
        save_comparison([first, series("other", 1, 2, 3)], tmp_path / "a.png", "")
    assert list(tmp_path.iterdir()) == []


def test_a_page_of_plans_holds_their_numbers_and_scores_and_loads_nothing(tmp_path):
    path = tmp_path / "plans.html"
    save_comparison(PLANS, path, "A <b> title", ["A note & more"], {"columns": ["</script>"]})
    text = path.read_text()
    page = check_page(text, {"columns": ["</script>"]})
    assert "A <b> title" in page.cells and "A note & more" in page.cells
    assert rows(text) == [
        [
            "block",
            "as given: score",
            "as given",
            "mola:2 &amp; &lt;more&gt;",
            "sensitivity: score",
            "sensitivity",
        ],
        ["model.layers.0", "4.000", "5", "2", "0.0520", "4.3"],
        ["model.layers.1", "3.500", "4", "4", "0.0310", "4.3"],
        ["model.layers.2", "-", "3", "6", "0.0304", "3.3"],
    ]


def test_what_is_missing_is_said_before_anything_is_drawn(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"plan.gif: its name must end in one of \.png"):
        check_plot(tmp_path / "plan.gif")
    with pytest.raises(ValueError, match=r"plan.gif: its name must end"):
        save_comparison(PLANS, tmp_path / "plan.gif", "Plans")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "axolotl-alphalora\[plot\]"'):
        check_plot(tmp_path / "plan.png")


def test_a_failed_drawing_leaves_the_old_file(tmp_path):
    path = tmp_path / "plan.html"
    path.write_text("old")
    with pytest.raises(TypeError):
        save_plot(picture(document={"not JSON": object()}), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
