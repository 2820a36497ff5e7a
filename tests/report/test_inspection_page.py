"""The HTML report of an inspection, read as a file and in a headless Chromium without network."""

import html
import json
import re
import shutil
import subprocess

import pytest

from axolotl_alphalora.inspection import InspectedData, Inspection, inspect_weights
from axolotl_alphalora.report.adapter_sentences import facts, stands_out
from axolotl_alphalora.report.documents import inspection_document
from axolotl_alphalora.report.plots import save_inspection
from helpers.inspecting import KINDS, usages, write_adapter

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
TASKS = ("code & <tests>", "maths")
PROBE = """<script>
addEventListener("securitypolicyviolation", () => { document.body.dataset.violated = "yes"; });
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(part => { part.open = true; });
  const size = part => {
    const box = part.getBoundingClientRect();
    return [part.id, Math.round(box.width), Math.round(box.height)];
  };
  const sizes = what => Array.from(document.querySelectorAll(what), size);
  document.body.dataset.found = JSON.stringify({
    svg: sizes("svg"),
    axes: sizes("svg g[id^=axes_]"),
    experts: sizes("svg g[id^=experts-]"),
    rows: sizes("tbody tr"),
    tables: Array.from(document.querySelectorAll("table"), t => t.tBodies[0].rows.length),
    width: [document.documentElement.scrollWidth, innerWidth],
    loaded: performance.getEntriesByType("resource").map(entry => entry.name),
    format: JSON.parse(document.getElementById("numbers").textContent).format,
    title: document.querySelector("h1").textContent,
  });
});
</script>
"""


@pytest.fixture(scope="module", params=["weights", "data"])
def report(request, tmp_path_factory):
    """An inspection and its page."""
    folder = tmp_path_factory.mktemp("report")
    write_adapter(folder / "adapter", [1, 3, 6, 2, 4])
    found = inspect_weights(folder / "adapter")
    if request.param == "data":
        rows = dict.fromkeys(TASKS, 7)
        found = Inspection(
            found.config,
            found.modules,
            usages(found.modules, TASKS),
            InspectedData("https://somewhere.example/data.jsonl", 200, rows),
        )
    path = folder / "report.html"
    save_inspection(found, path, "Experts of <mine>")
    return found, path


def test_nothing_in_the_page_has_an_address(report):
    found, path = report
    text = path.read_text()
    # Addresses that are text, or the names of vocabularies, are not followed.
    text = text.replace("https://somewhere.example", "")
    text = re.sub(r'xmlns(:\w+)?="http://www\.w3\.org/[^"]*"', "", text)
    assert not re.search(r"https?:|//[a-z0-9.-]+\.[a-z]|@import|data:", text)
    assert not re.search(r"<(link|img|image|iframe|object|embed|base|form|video|audio)\b", text)
    assert all(value.startswith("#") for value in re.findall(r'(?:href|src)="([^"]*)"', text))
    assert all(value.startswith("#") for value in re.findall(r"url\(['\"]?([^)]*)\)", text))
    assert "default-src 'none'; style-src 'unsafe-inline'" in text
    assert text.count("<script") == 1 and 'type="application/json"' in text
    numbers = re.search(r'id="numbers">(.*?)</script>', text)[1]
    document = inspection_document(found)
    if found.data is not None:
        document["data"]["source"] = "/data.jsonl"
    assert json.loads(numbers) == json.loads(json.dumps(document))


def test_the_tables_hold_every_block_module_expert_and_task(report):
    found, path = report
    text = path.read_text()
    for block in found.blocks:
        assert f"<td>{block.name}</td>" in text
    for row in found.modules:
        assert text.count(f"<td>{row.name}</td>") == 1 + len(row.experts)
        assert f"<td>{row.mean_norm:.3f}</td>" in text
    assert "<h1>Experts of &lt;mine&gt;</h1>" in text
    for line in (*facts(found), *stands_out(found)):
        assert f"<p>{line}</p>" in html.unescape(text)
    assert ("<td>code &amp; &lt;tests&gt;</td>" in text) == (found.data is not None)
    for task in found.tasks:
        assert f"<td>{task.distance:.1%}</td>" in text


def browse(page, folder, *options):
    """Open a page in a browser that can resolve no name; returns what it printed."""
    command = [
        BROWSER,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1100,1400",
        *options,
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_shows_charts_and_tables_and_asks_for_nothing(report, tmp_path):
    found, path = report
    page = tmp_path / "probed.html"
    text = path.read_text().replace("style-src", "script-src 'unsafe-inline'; style-src", 1)
    page.write_text(text.replace("</head>", f"{PROBE}</head>", 1))
    shown = browse(page, tmp_path, "--dump-dom")
    assert "data-violated" not in shown
    attribute = re.search(r'data-found="([^"]*)"', shown)[1]
    seen = json.loads(attribute.replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">"))
    assert seen["loaded"] == []
    assert seen["title"] == "Experts of <mine>"
    assert seen["format"] == inspection_document(found)["format"]
    assert seen["width"][0] <= seen["width"][1]
    ((_, width, height),) = seen["svg"]
    assert width > 600 and height > 300
    assert [name for name, *_ in seen["experts"]] == [f"experts-{kind}" for kind in KINDS]
    assert len(seen["axes"]) == len(KINDS) + (2 if found.usage is None else 4)
    for _, width, height in (*seen["experts"], *seen["axes"], *seen["rows"]):
        assert width > 10 and height > 10
    blocks, words = len(found.blocks), 3 if found.usage is None else 8
    tables = [blocks, words, len(found.modules), found.module_experts]
    assert seen["tables"] == (tables if found.usage is None else [blocks, blocks, 2, *tables[1:]])


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_the_screen_is_not_blank(report, tmp_path):
    from matplotlib.image import imread

    found, path = report
    browse(path, tmp_path, f"--screenshot={tmp_path / 'screen.png'}")
    pixels = imread(tmp_path / "screen.png")[..., :3]
    inked = (pixels.min(-1) < 0.9).mean()
    coloured = (pixels.max(-1) - pixels.min(-1) > 0.2).mean()
    assert 0.02 < inked < 0.6 and coloured > 0.005
