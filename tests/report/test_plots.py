"""Files with pictures: every kind, what is in them, and that pages load nothing."""

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from axolotl_alphalora.allocation import Evidence
from axolotl_alphalora.planning import Compared
from axolotl_alphalora.report.findings import Findings
from axolotl_alphalora.report.plots import (
    SUFFIXES,
    Page,
    check_plot,
    save_analysis,
    save_comparison,
    save_plan,
)
from axolotl_alphalora.settings import QualitySettings
from axolotl_alphalora.spectral import Spectra, assess, unit_scores
from helpers import allocating

HEADS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".html": b"<!doctype html>"}
KINDS = ("q_proj", "up_proj")
NAMES = [f"model.layers.{i}.{kind}" for i in range(3) for kind in KINDS]
SHAPES = dict.fromkeys(NAMES, (40, 60))
BLOCKS = [f"model.layers.{i}" for i in range(3)]


def spectra():
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.rand(1, 40, generator=generator).exp().sort().values for name in NAMES}
    return Spectra(None, values, SHAPES, dict.fromkeys(NAMES, ""))


def matrices():
    """What was measured of the spectra, with alphas of 4, 3 and 2 in the three blocks."""
    rows = assess(spectra())
    return tuple(replace(row, alpha=4.0 - i // 2) for i, row in enumerate(rows))


def plan(strategy="alphalora", evidence=None, shapes=SHAPES, **options):
    made = allocating.plan(
        strategy, shapes, options=options, budget={"total_experts": 12}, evidence=evidence
    )
    return made.model_copy(update={"base_model": "A <model> & more"})


def by_alpha():
    rows = matrices()
    alphas = unit_scores(rows)
    ranges = {block: (alpha - 0.5, alpha + 0.5) for block, alpha in alphas.items()}
    return plan(evidence=Evidence(alphas=alphas, qualities=rows, intervals=ranges))


def by_shares():
    shares = dict(zip(NAMES, (30, 22, 20, 11, 10, 7), strict=True))
    sample = {"tasks": {"a": 3}, "seed": 7, "digest": "x"}
    evidence = Evidence(sensitivities={"a": shares}, sample=sample)
    return plan("sensitivity", evidence, granularity="module")


PLANS = [
    Compared("as given", by_alpha(), None),
    Compared("mola:246 & <more>", plan("mola", shape=[2, 4, 6]), ()),
    Compared("sensitivity", by_shares(), None),
]
FINDINGS = Findings(
    QualitySettings(), matrices(), unit_scores(matrices()), description={"source": "safetensors"}
)
SAVING = {
    "plan": lambda path: save_plan(by_alpha(), FINDINGS, path, spectra()),
    "analysis": lambda path: save_analysis(FINDINGS, "m", path, {"a": 1}, spectra()),
    "comparison": lambda path: save_comparison(PLANS, path, {"columns": ["</script>"]}),
}


@pytest.mark.parametrize("what", SAVING)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_file_is_drawn_and_drawn_the_same_again(pictures, suffix, what):
    path = pictures / "new" / f"plan{suffix}"
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
    return [re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", row) for row in table.split("</tr>")][
        :-1
    ]


def test_a_page_of_a_plan_holds_all_and_loads_nothing(tmp_path):
    made = by_alpha()
    save_plan(made, Findings.of_plan(made), tmp_path / "plan.html", spectra())
    text = (tmp_path / "plan.html").read_text()
    page = check_page(text, json.loads(json.dumps(made.to_dict())))
    for row in matrices():
        assert row.module in page.cells and f"{row.alpha:.3f}" in page.cells
        assert f"{row.x_min:.4g}" in page.cells and f"{row.distance:.3f}" in page.cells
    assert "AlphaLoRA experts: A <model> & more" in page.cells
    assert "Budget: 12 experts, met exactly." in page.cells
    numbers = made.block_numbers
    assert rows(text)[:2] == [
        ["block", "alpha", "95 % range", "experts"],
        ["model.layers.0", "4.000", "3.50 - 4.50", f"{numbers['model.layers.0']:g}"],
    ]


def test_a_page_of_an_analysis_holds_its_blocks_and_its_document(tmp_path):
    save_analysis(FINDINGS, "m", tmp_path / "a.html", {"blocks": ["</script>"], "alpha": 4.0})
    text = (tmp_path / "a.html").read_text()
    check_page(text, {"blocks": ["</script>"], "alpha": 4.0})
    assert [row[:2] for row in rows(text)] == [
        ["block", "alpha"],
        *([block, f"{4 - i}.000"] for i, block in enumerate(BLOCKS)),
    ]
    assert len(rows(text, 1)) == 1 + len(NAMES)


def test_a_page_of_shares_and_means_names_them(tmp_path):
    save_plan(by_shares(), None, tmp_path / "plan.html")
    text = (tmp_path / "plan.html").read_text()
    head, first, *_ = rows(text)
    assert head == ["block", "share", "experts"]
    assert first[:2] == ["model.layers.0", "52.00%"]
    assert re.fullmatch(r"\d\.\d \(\d-\d\)", first[2])
    assert "alpha " not in text.partition('<script type="application')[0]


def test_a_page_without_any_score_shows_experts_alone(tmp_path):
    save_plan(plan("uniform"), None, tmp_path / "plan.html")
    text = (tmp_path / "plan.html").read_text()
    assert rows(text)[0] == ["block", "experts"] and "matrices" not in text


def test_a_page_of_plans_holds_their_numbers_and_scores_and_loads_nothing(tmp_path):
    path = tmp_path / "plans.html"
    save_comparison(PLANS, path, {"columns": ["</script>"]})
    text = path.read_text()
    page = check_page(text, {"columns": ["</script>"]})
    assert "Plans for A <model> & more" in page.cells
    head, *found = rows(text)
    assert head == [
        "block",
        "as given: score",
        "as given",
        "mola:246 &amp; &lt;more&gt;: score",
        "mola:246 &amp; &lt;more&gt;",
        "sensitivity: score",
        "sensitivity",
    ]
    assert [row[:2] for row in found] == [[b, f"{4 - i}.000"] for i, b in enumerate(BLOCKS)]
    assert [row[3:6] for row in found] == [
        ["2", "2", "52.00%"],
        ["4", "4", "31.00%"],
        ["6", "6", "17.00%"],
    ]


def test_plans_of_other_blocks_are_refused_and_nothing_is_written(tmp_path):
    other = plan("uniform", shapes={"model.layers.7.q_proj": (8, 8)})
    with pytest.raises(ValueError, match="other and as given are plans of different blocks"):
        save_comparison([PLANS[0], Compared("other", other, ())], tmp_path / "a.png", {})
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_said_before_anything_is_drawn(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"plan.gif: its name must end in one of \.png"):
        check_plot(tmp_path / "plan.gif")
    with pytest.raises(ValueError, match=r"plan.gif: its name must end"):
        save_comparison(PLANS, tmp_path / "plan.gif", {})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        ImportError, match=r"`pip install matplotlib`, or `pip install '\.\[plot\]'` in a"
    ):
        check_plot(tmp_path / "plan.png")


def test_a_failed_drawing_leaves_the_old_file(tmp_path):
    path = tmp_path / "plan.html"
    path.write_text("old")
    with pytest.raises(TypeError):
        save_analysis(FINDINGS, "m", path, {"not JSON": object()})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_stands_on_a_page_is_text():
    """Names, sentences and JSON with markup are shown as they are written."""
    title, note = "<b>T</b>", 'alpha < 2 & "so" on'
    text = Page(title, [note], [], {"a": "</script><b>"}).html("<?xml?><svg><g/></svg>")
    page = check_page(text, {"a": "</script><b>"})
    assert page.cells.count(title) == 2 and note in page.cells
    assert ("b", {}) not in page.found
    assert ("svg", {"role": "img", "aria-label": title}) in page.found
