"""`alphalora strategies`."""

import json
import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from axolotl_alphalora import allocation
from axolotl_alphalora.allocation import registry
from axolotl_alphalora.allocation.registry import Registry
from axolotl_alphalora.allocation.strategies import uniform
from axolotl_alphalora.allocation.strategy import GROUP


def test_every_strategy_is_listed_with_its_options(run):
    shown = run("strategies")
    assert shown.exit_code == 0, shown.output
    assert max(map(len, shown.output.splitlines())) <= 80
    words = " ".join(shown.output.split())
    for name in registry().names():
        strategy = registry().get(name).strategy
        assert f"\n{name}\n" in f"\n{shown.output}"
        assert all(f" {option} " in words for option in strategy.options.model_fields)
    (line,) = {line for line in shown.output.splitlines() if line.startswith("  window ")}
    assert "windows whose" in line, "a name stands where its description begins"
    assert "Needs: the weights. Budget: needed (5 experts per block" in words
    assert "Short form: mola:VALUE sets shape." in words


def test_json_holds_the_same(run):
    found = json.loads(run("strategies", "--json").stdout)
    assert found["problems"] == []
    rows = {row["name"]: row for row in found["strategies"]}
    assert list(rows) == registry().names()
    assert (rows["depth"]["needs"], rows["depth"]["budget"]) == ("nothing", "optional")
    assert rows["depth"]["options"][0]["default"] == [2.0, 8.0]
    assert rows["alphalora"]["package"].startswith("axolotl-alphalora ")
    options = {row["name"]: row for row in rows["alphalora"]["options"]}
    assert options["beta"]["default"] == 2.5 and options["beta"]["description"]


def test_one_can_be_named(run):
    shown = run("strategies", "mola").output
    assert shown.startswith("mola\n") and "alphalora\n" not in shown
    wrong = run("strategies", "mole")
    assert wrong.exit_code == 1 and "unknown strategy 'mole'" in wrong.output


def test_broken_packages_and_shared_names_are_said(run, monkeypatch):
    copy = ModuleType("another_uniform")
    vars(copy).update(register_strategy=uniform.register_strategy, allocate=uniform.allocate)
    monkeypatch.setitem(sys.modules, copy.__name__, copy)
    names = ("no_such_module_at_all", copy.__name__)
    found = Registry([EntryPoint(name, name, GROUP) for name in names])
    monkeypatch.setattr(allocation, "registry", lambda: found)
    shown = run("strategies")
    words = " ".join(shown.output.split())
    assert shown.exit_code == 0
    assert "no_such_module_at_all" in words and "cannot be imported" in words
    assert "the strategy 'uniform' is in axolotl-alphalora" in words
    assert "and another_uniform: uninstall one" in words
    assert "\nmola\n" in shown.output and "\nuniform\n" not in shown.output


@pytest.mark.parametrize("options", [[], ["--json"], ["mola"]])
def test_it_needs_no_torch(fresh_process, options):
    code = (
        "import sys; from axolotl_alphalora.cli import alphalora\n"
        f"alphalora({['strategies', *options]}, standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    fresh_process("-c", code)
