"""`--compare` of plans that are measured on rows: by gradients and by activations."""

import re
import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from axolotl_alphalora.activations import ExplainedVariance
from axolotl_alphalora.allocation import Plan, Strategy, components_needed, hookimpl, registry
from axolotl_alphalora.allocation.registry import Registry
from axolotl_alphalora.allocation.strategy import GROUP
from axolotl_alphalora.planning import layers
from axolotl_alphalora.planning.planner import plan_from_samples
from axolotl_alphalora.plugin import session
from axolotl_alphalora.sensitivity import Sensitivity
from helpers.plan_command import linear


class FakeHost:
    """What a loaded model might say on samples, without one."""

    loaded: list[str] = []

    def __init__(self, path, halves):
        self.path, self.halves = path, halves

    def plan(self, request):
        self.loaded.append(request.strategy)
        shapes = layers(request)
        found = self.measure(request, shapes)
        sample = {"tasks": {"a": 2, "b": 2}, "seed": 0, "digest": "x"}
        weights = {"source": "live", "dtype": "float32"}
        return plan_from_samples(request, shapes, found, weights, sample), found

    def measure(self, request, shapes):
        if request.needs == "activations":
            count = components_needed(request, shapes)
            parts = [
                {name: falling(count, (i * factor) % 5) for i, name in enumerate(shapes)}
                for factor in (1, 2, 3)
            ]
            halves = (parts[1], parts[2]) if self.halves else (None, None)
            return ExplainedVariance(count, parts[0], halves)
        squares = {
            name: (i + 1.0, (i + 1.0) ** 2, 1.0, 1.0 + i % 3) for i, name in enumerate(shapes)
        }
        return Sensitivity(("a", "a", "b", "b"), squares)


def falling(count, steepness):
    """Ratios that fall the faster, the steeper."""
    values = [0.9 ** (place * (1 + steepness)) for place in range(count)]
    return tuple(value / sum(values) for value in values)


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setattr(session, "HostModel", FakeHost)
    monkeypatch.setattr(FakeHost, "loaded", [])
    return FakeHost


def test_a_plan_by_gradients_varies_with_the_halves_of_its_sample(tmp_path, model, columns, host):
    path = linear(tmp_path, model, total_experts=40)
    rows = columns(path, "uniform", "sensitivity", "sensitivity+beta=1")
    assert host.loaded == ["sensitivity"], "gradients are taken once"
    (one,) = rows[2]["stability"]
    assert (one["over"], one["plans"]) == ("halves", 1)
    assert -1 <= one["rank_correlation"] < 1
    alone = [Plan.from_dict(row["plan"]) for row in rows[2:]]
    assert [plan.strategy["options"]["beta"] for plan in alone] == [0.5, 1.0]
    assert alone[0].numbers != alone[1].numbers
    assert alone[0].sample == alone[1].sample


def test_a_plan_by_activations_varies_with_the_halves_of_its_sample(tmp_path, model, columns, host):
    path = linear(tmp_path, model, total_experts=40)
    rows = columns(path, "eva", "eva+granularity=block", "eva+rho=3", "sensitivity")
    assert host.loaded == ["eva", "eva", "sensitivity"], "more components are measured anew"
    for row in rows[1:]:
        (one,) = row["stability"]
        assert (one["over"], one["plans"]) == ("halves", 1)
    plans = [Plan.from_dict(row["plan"]) for row in rows[1:]]
    assert [len(plan.modules[0].explained) for plan in plans[:3]] == [20, 20, 30]
    assert all(len(set(plan.numbers.values())) > 1 for plan in plans[:3])
    assert plans[0].sample == plans[1].sample
    assert plans[3].modules[0].explained is None


def test_a_plan_by_activations_says_what_it_was_measured_on(tmp_path, model, run, host):
    path = linear(tmp_path, model, allocation="eva", total_experts=40)
    page = tmp_path / "plan.html"
    shown = run("plan", path, "--per-module", "--output", tmp_path / "plan.json", "--plot", page)
    table = shown.output.partition("Drawn in")[0]
    assert "inputs of layers on 4 samples of 2 tasks (a 2, b 2), seed 0" in " ".join(table.split())
    assert "explained" in table and "share" not in table
    assert max(map(len, table.splitlines())) <= 80
    plan = Plan.load(tmp_path / "plan.json")
    last = plan.modules[-1]
    share = sum(last.explained[: last.experts])
    assert re.search(rf"^  mlp.down_proj .* {share:.2%}$", table, re.M)
    assert "explained" in page.read_text()


def test_a_plan_that_leaves_modules_alone_lets_the_others_do_so_too(tmp_path, model, columns, host):
    rule = {"strategy": "sensitivity", "percentile": 90}
    own, other = columns(linear(tmp_path, model, allocation=rule), "sensitivity+percentile=null")
    numbers = [Plan.from_dict(row["plan"]).numbers.values() for row in (own, other)]
    assert min(numbers[0]) == 0 and min(numbers[1]) == 0
    assert other["plan"]["trainable_parameters"] <= own["plan"]["trainable_parameters"]
    assert other["plan"]["budget"]["asked"] == own["plan"]["trainable_parameters"]


def test_a_strategy_without_options_shares_the_usual_sample(
    tmp_path, model, columns, host, monkeypatch
):
    described = Strategy("summed", "squared gradients, summed", needs="sensitivity")
    module = ModuleType("summed_gradients")
    vars(module).update(
        register_strategy=hookimpl(lambda: described),
        score=hookimpl(_summed),
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = Registry([EntryPoint("summed", module.__name__, GROUP)])
    monkeypatch.setitem(registry()._found, "summed", [found.get("summed")])
    columns(linear(tmp_path, model, total_experts=40), "sensitivity", "summed")
    assert host.loaded == ["sensitivity"]


def test_a_strategy_of_another_package_may_go_by_activations(
    tmp_path, model, columns, host, monkeypatch
):
    described = Strategy("spread", "by all that is explained", needs="activations")
    module = ModuleType("spread_activations")
    vars(module).update(
        register_strategy=hookimpl(lambda: described),
        score=hookimpl(lambda problem: dict.fromkeys(problem.units, 1.0)),
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = Registry([EntryPoint("spread", module.__name__, GROUP)])
    monkeypatch.setitem(registry()._found, "spread", [found.get("spread")])
    rows = columns(linear(tmp_path, model, total_experts=40), "eva+granularity=block", "spread")
    assert host.loaded == ["eva"], "as many components as rho 2 asks for"
    assert [len(row["plan"]["modules"][0]["explained"]) for row in rows[1:]] == [20, 20]


def _summed(problem):
    values = problem.sensitivities["a"]
    return {unit: sum(values[name] for name in names) for unit, names in problem.units.items()}


def test_a_plan_by_gradients_says_what_it_was_measured_on(tmp_path, model, run, host):
    path = linear(tmp_path, model, allocation="sensitivity", total_experts=40)
    shown = run("plan", path, "--per-module", "--output", tmp_path / "plan.json").output
    assert "on 4 samples of 2 tasks (a 2, b 2), seed 0" in " ".join(shown.split())
    assert not re.search(r"\balpha\b", shown.partition("Saved to")[0])
    assert max(map(len, shown.partition("Saved to")[0].splitlines())) <= 80
    plan = Plan.load(tmp_path / "plan.json")
    totals = {task: sum(m.sensitivity[task] for m in plan.modules) for task in ("a", "b")}
    last = plan.modules[-1]
    share = sum(last.sensitivity[task] / totals[task] for task in totals) / 2
    assert re.search(rf"^  mlp.down_proj .* {share:.2%}$", shown, re.M)


def test_halves_that_cannot_be_had_leave_stability_open(
    tmp_path, model, columns, host, monkeypatch
):
    def single(self, request):
        plan, found = FakeHost.plan(self, request)
        squares = {name: values[:1] for name, values in found.squares.items()}
        sample = {**plan.sample, "tasks": {"a": 1}}
        return plan.model_copy(update={"sample": sample}), Sensitivity(("a",), squares)

    class Single(FakeHost):
        plan = single

    monkeypatch.setattr(session, "HostModel", Single)
    rows = columns(linear(tmp_path, model, total_experts=40), "sensitivity")
    assert rows[1]["stability"] is None
