"""The example package, built as a wheel and installed, adds a strategy that is used by name."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml

from axolotl_alphalora.allocation import Plan
from axolotl_alphalora.planning import layers, plan_request, read_block

EXAMPLE = Path(__file__).parents[2] / "docs" / "example-strategy"
CLI = "from axolotl_alphalora.cli import alphalora; alphalora()"


@pytest.fixture(scope="module")
def python(fresh_process):
    """Runs Python, with packages of a folder if one is named; returns what it prints."""

    def run(*arguments, path=None, cwd=None):
        paths = [str(path), os.environ.get("PYTHONPATH", "")] if path else []
        environment = {**os.environ, **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})}
        return fresh_process(*arguments, cwd=cwd, env=environment).stdout

    return run


@pytest.fixture(scope="module")
def installed(tmp_path_factory, python):
    """The directory that the example's wheel was unpacked into."""
    folder = tmp_path_factory.mktemp("example")
    source, site = folder / "source", folder / "site"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))
    backend = "from hatchling.build import build_wheel; print(build_wheel('..'))"
    wheel = python("-c", backend, cwd=source).split()[-1]
    zipfile.ZipFile(folder / wheel).extractall(site)
    return site


def test_the_example_is_short():
    lines = [line for file in EXAMPLE.glob("*.*") for line in file.read_text().splitlines()]
    assert len(lines) < 40


def test_the_strategy_is_listed_with_its_options(python, installed):
    listed = json.loads(python("-c", CLI, "strategies", "width", "--json", path=installed))
    assert listed["problems"] == []
    (row,) = listed["strategies"]
    assert (row["name"], row["package"]) == ("width", "alphalora-width 1.0")
    assert row["summary"] == "more experts where layers are wider"
    *own, order, seed = row["options"]
    assert (order["name"], seed["name"]) == ("order", "order_seed")
    assert own[-1] == {
        "name": "power",
        "default": 1.0,
        "description": "experts in proportion to width ** power",
    }


def test_the_strategy_is_usable_by_name_from_a_yaml(python, installed, tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "model")
    config = tmp_path / "config.yml"
    config.write_text(
        f"base_model: {tmp_path / 'model'}\n"
        "adapter: alphalora\n"
        "lora_r: 4\n"
        "lora_target_modules: [k_proj, up_proj]\n"
        "alphalora:\n"
        "  allocation: {strategy: width, power: 2}\n"
        "  total_experts: 10\n"
    )
    # Fills the cache: the other process need not import transformers for the layers.
    layers(plan_request(yaml.safe_load(config.read_text()), read_block({})))
    saved = tmp_path / "plan.json"
    said = python("-c", CLI, "plan", config, "--output", saved, path=installed)
    assert "width" in said
    made = Plan.load(saved)
    assert made.strategy == {
        "name": "width",
        "package": "alphalora-width 1.0",
        "options": {"granularity": "module", "power": 2.0},
    }
    # The smaller sides are 32 and 64, so 1 to 4 as squares; a module is half of its block.
    assert {name.rpartition(".")[2]: count for name, count in made.counts.items()} == {
        "k_proj": 2,
        "up_proj": 8,
    }


def test_the_options_of_the_strategy_are_checked_in_the_yaml(python, installed):
    code = (
        "from axolotl_alphalora.planning import AlphaLoraConfigBlock as Block\n"
        "good = Block.model_validate({'allocation': 'width'})\n"
        "print(good.allocation, good.experts_per_block)\n"
        "try:\n"
        "    Block.model_validate({'allocation': {'strategy': 'width', 'power': -1}})\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    said = python("-c", code, path=installed)
    assert "{'strategy': 'width'} 5.0" in said
    assert "option 'power' of strategy 'width' should be greater than or equal to 0" in said
