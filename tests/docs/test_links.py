"""Links of README and docs lead to files and headings that are there; no network."""

import re
from pathlib import Path

import pytest

import generate

FENCE = re.compile(r"^```.*?^```$", re.S | re.M)


def anchors(page: Path) -> set[str]:
    """What GitHub calls a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.M):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        number = next(n for n in range(len(found) + 1) if _numbered(slug, n) not in found)
        found.add(_numbered(slug, number))
    return found


def _numbered(slug: str, number: int) -> str:
    return f"{slug}-{number}" if number else slug


def inner_links(page: Path) -> list[str]:
    """The links of a page that lead to a file or a heading of this repository."""
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text()))
    return [link for link in dict.fromkeys(links) if not re.match(r"[a-z]+:", link)]


NAMED = re.compile(r"\[`(test_\w+)`\]\(([^)\s]+\.py)\)")


def missing_tests(page: Path) -> list[str]:
    """The tests that a page names which are not where it says."""
    found = []
    for test, link in NAMED.findall(page.read_text()):
        file = page.parent / link
        text = file.read_text() if file.exists() else ""
        if not re.search(rf"^def {test}\(", text, re.M):
            found.append(f"{test} in {link}")
    return found


def untested_rows(text: str) -> list[str]:
    """The rows, of tables whose last column is `test`, that name none and do not say `not run`."""
    found, inside = [], False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
        elif line.endswith("| test |"):
            inside = True
        elif inside and not line.startswith("| ---"):
            found += [] if NAMED.search(line) or "not run" in line else [line]
    return found


def problem(page: Path, link: str) -> str | None:
    """What is wrong with a relative link, None if nothing is."""
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return f"{link}: no such file"
    if anchor and anchor not in anchors(target):
        return f"{link}: no such heading"
    return None


@pytest.mark.parametrize("page", generate.pages(), ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page):
    assert [found for link in inner_links(page) if (found := problem(page, link))] == []


@pytest.mark.parametrize("page", generate.pages(), ids=lambda page: page.name)
def test_every_test_that_is_named_is_in_its_file(page):
    assert missing_tests(page) == []


def test_every_server_and_every_silent_mistake_names_its_test_or_was_not_run():
    text = (generate.ROOT / "docs" / "export-and-serving.md").read_text()
    assert re.findall(r"^\| (server|silent mistake) \|.* test \|$", text, re.M) == [
        "server",
        "silent mistake",
    ]
    assert untested_rows(text) == []


def test_a_test_that_is_not_there_and_a_row_without_one_are_found(tmp_path):
    (tmp_path / "f.py").write_text("def test_a():\n    pass\n\n\ndef test_bc(): ...\n")
    page = tmp_path / "page.md"
    page.write_text("[`test_a`](f.py), [`test_b`](f.py), [`test_a`](g.py), [`test_bc`](f.py)")
    assert missing_tests(page) == ["test_b in f.py", "test_a in g.py"]
    rows = ["| one | [`test_a`](f.py) |", "| two | not run |", "| three | the same |"]
    table = "\n".join(["| what | test |", "| --- | --- |", *rows, "", "| four | none |"])
    assert untested_rows(table) == ["| three | the same |"]


def test_the_readme_leads_to_every_kind_of_place():
    links = inner_links(generate.ROOT / "README.md")
    assert {"CHANGELOG.md", "example_configs", "#take-it-elsewhere"} < set(links)
    assert any(link.endswith(".png") for link in links)


def test_a_link_to_nowhere_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One thing\n\n```text\n# none\n```\n\n## `a`, b\n\n## `a`, b\n")
    assert anchors(page) == {"one-thing", "a-b", "a-b-1"}
    assert problem(page, "#a-b-1") is None and problem(page, "page.md#one-thing") is None
    assert problem(page, "#none") and problem(page, "other.md")
