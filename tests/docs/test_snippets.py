"""The Python of README and docs: it can be read, its names are there, the README's runs."""

import ast
import json
import re
from importlib import import_module
from pkgutil import resolve_name

import pytest

import generate
from axolotl_alphalora.adapter import AlphaLoraLayer
from axolotl_alphalora.planning import Planner, read_source
from helpers.models import save_tiny_model

BLOCK = re.compile(r"^```python\n(.*?)^```", re.S | re.M)
SNIPPETS = {
    f"{page.name}-{number}": text
    for page in generate.pages()
    for number, text in enumerate(BLOCK.findall(page.read_text()))
}
QUICK = 'SFTConfig("outputs/alphalora", max_steps=1, use_cpu=True, bf16=False, report_to="none")'


@pytest.mark.parametrize("name", SNIPPETS)
def test_what_is_imported_from_the_package_is_there(name):
    imports = [n for n in ast.walk(ast.parse(SNIPPETS[name])) if isinstance(n, ast.ImportFrom)]
    for node in imports:
        if node.module.startswith("axolotl_alphalora"):
            module = import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("page", generate.pages(), ids=lambda page: page.name)
def test_paths_and_names_in_the_text_are_there(page):
    text = page.read_text()
    folders = "axolotl_alphalora|benchmarks|docs|example_configs|tests"
    for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", text):
        assert (generate.ROOT / path).exists(), path
    for name in re.findall(r"`(axolotl_alphalora(?:\.\w+)+)[(`]", text):
        assert resolve_name(name), name


def test_paths_that_the_code_names_are_there():
    folders = "axolotl_alphalora|benchmarks|docs|example_configs|tests"
    named = {
        path
        for folder in folders.split("|")
        for file in (generate.ROOT / folder).rglob("*.py")
        for path in re.findall(rf"\b((?:{folders})/[\w/-]+\.(?:py|md|yml))", file.read_text())
    }
    assert len(named) > 10
    assert not [path for path in sorted(named) if not (generate.ROOT / path).exists()]


def test_the_readme_trains_saves_and_loads(tmp_path, monkeypatch):
    """Its two snippets in one folder: the adapter that TRL has trained is opened again."""
    load, train = (text for name, text in SNIPPETS.items() if name.startswith("README.md"))
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "model")
    plan, _ = Planner().settled(read_source(tmp_path / "model"))
    plan.save(tmp_path / "plan.json")
    rows = [{"prompt": f"say {word}", "completion": word * 2} for word in "abcd"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    assert train.count('SFTConfig("outputs/alphalora")') == 1
    train = train.replace('SFTConfig("outputs/alphalora")', QUICK)
    trained = run(train.replace("Qwen/Qwen3-0.6B", "model"))["trainer"].model
    opened = run(load.replace("Qwen/Qwen3-8B", "model"))["model"]
    assert counts(opened) == counts(trained) and len(counts(opened)) == 14
    weights = dict(opened.named_parameters())
    assert all(
        (weights[name] == parameter.cpu()).all()
        for name, parameter in trained.named_parameters()
        if "alphalora" in name
    )


def run(text: str) -> dict:
    names: dict = {}
    exec(compile(text, "README.md", "exec"), names)
    return names


def counts(model) -> dict[str, int]:
    config = model.peft_config["default"]
    assert any(isinstance(module, AlphaLoraLayer) for module in model.modules())
    return {name: count for name, count in config.num_experts.items() if count}
