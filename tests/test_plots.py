"""Pictures: every kind of file, what is in them, and that pages load nothing."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest
import torch

from axolotl_alphalora.plots import SUFFIXES, Picture, check_plot, save_plot
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


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_file_is_drawn_and_drawn_the_same_again(tmp_path, suffix):
    path = tmp_path / "new" / f"plan{suffix}"
    save_plot(picture(), path)
    content = path.read_bytes()
    assert content.startswith(HEADS[suffix])
    save_plot(picture(), path)
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


def test_a_page_holds_all_and_loads_nothing(tmp_path):
    drawn = picture()
    save_plot(drawn, tmp_path / "plan.html")
    text = (tmp_path / "plan.html").read_text()
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
    assert json.loads(numbers[1]) == drawn.document
    for row in drawn.matrices:
        assert row.module in page.cells and f"{row.alpha:.3f}" in page.cells
    assert "alpha < 2 & so on" in page.cells


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


def test_blocks_without_a_score_and_of_several_towers_can_be_drawn(tmp_path):
    scores = {"vision.layers.0": None, "text.layers.0": 3.0}
    drawn = Picture("two towers", scores, experts=dict.fromkeys(scores, 1))
    upper, lower = draw(drawn).axes
    assert [label.get_text() for label in lower.get_xticklabels()] == list(scores)


def test_what_is_missing_is_said_before_anything_is_drawn(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"plan.gif: its name must end in one of \.png"):
        check_plot(tmp_path / "plan.gif")
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
