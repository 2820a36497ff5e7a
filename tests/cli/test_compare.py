"""`--compare`: several plans of one budget side by side."""

import json
import re
import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest
import yaml

from axolotl_alphalora.activations import ExplainedVariance
from axolotl_alphalora.allocation import Plan, Strategy, components_needed, hookimpl, registry
from axolotl_alphalora.allocation.registry import Registry
from axolotl_alphalora.allocation.strategy import GROUP
from axolotl_alphalora.planning import layers, rank_correlation
from axolotl_alphalora.planning.planner import plan_from_samples
from axolotl_alphalora.plugin import session
from axolotl_alphalora.sensitivity import Sensitivity


def config(folder, model, **block):
    path = folder / "config.yml"
    settings = {"base_model": str(model), "lora_target_linear": True, "lora_r": 4}
    path.write_text(yaml.safe_dump(settings | {"alphalora": block}, sort_keys=False))
    return path


@pytest.fixture
def columns(run):
    def compare(source, *specs):
        result = run("plan", source, "--compare", *specs, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)["columns"]

    return compare


def labels(rows):
    return [row["label"] for row in rows]


@pytest.mark.usefixtures("combinations")
def test_each_column_is_the_plan_that_its_options_alone_would_give(tmp_path, model, run, columns):
    def plan(**allocation):
        return config(tmp_path, model, total_experts=13, allocation=allocation)

    base = {"strategy": "alphalora", "beta": 3.0, "aggregate": "median"}
    specs = ["hill,estimator=ks+beta=1", "--compare", "beta=0", "mola:24", "uniform"]
    rows = columns(plan(**base), *specs)
    changes = [
        {},
        {"estimator": "hill"},
        {"estimator": "ks", "beta": 1.0},
        {"beta": 0.0},
    ]
    assert labels(rows)[:4] == ["as given", "hill", "estimator=ks+beta=1", "beta=0"]
    assert labels(rows)[4:] == ["mola:24", "uniform"]
    plans = [base | change for change in changes]
    plans += [{"strategy": "mola", "shape": 24}, {"strategy": "uniform"}]
    for row, allocation in zip(rows, plans, strict=True):
        alone = run("plan", plan(**allocation), "--json")
        assert Plan.from_dict(row["plan"]) == Plan.from_dict(json.loads(alone.stdout))
    assert rows[0]["rank_correlation"] == pytest.approx(1)
    assert rows[0]["blocks_that_differ"] == rows[0]["experts_that_move"] == 0


def test_a_comparison_has_one_shape_of_mixture_and_counts_by_it(tmp_path, model, columns):
    shape = {"top_k": 0.5, "segments": 2, "router_rank": 3, "share_a": True}
    rows = columns(
        config(tmp_path, model, total_parameters=60_000, **shape), "uniform", "mola:1234"
    )
    for row in rows:
        assert {key: row["plan"][key] for key in shape} == shape
        assert row["plan"]["budget"]["spent"] == row["plan"]["trainable_parameters"] <= 60_000
    allocation = {"strategy": "counts", "experts": [1, 2, 3, 4]}
    own = columns(config(tmp_path, model, allocation=allocation, **shape), "counts:[4, 3, 2, 1]")
    assert len({row["plan"]["trainable_parameters"] for row in own}) == 1


def test_the_yamls_own_plan_is_left_out_where_a_spec_asks_for_the_same(model, columns):
    assert labels(columns(model, "uniform", "mola:24")) == ["as given", "uniform", "mola:24"]
    assert labels(columns(model, "uniform", "alphalora")) == ["uniform", "alphalora"]
    assert labels(columns(model, "uniform", "beta=2.5")) == ["uniform", "beta=2.5"]


def test_all_plans_get_what_a_plan_of_its_own_numbers_comes_to(tmp_path, model, columns):
    rows = columns(config(tmp_path, model, allocation="mola:1357"), "alphalora", "counts:[4,4,4,4]")
    assert [row["plan"]["total_experts"] for row in rows] == [16, 16, 16]
    assert rows[0]["plan"]["budget"]["kind"] is None
    counts = {"strategy": "counts", "experts": {"q_proj": 2, ".*": 1}}
    rows = columns(config(tmp_path, model, allocation=counts), "mola:1357")
    spent = rows[0]["plan"]["trainable_parameters"]
    assert rows[1]["plan"]["budget"]["kind"] == "total_parameters"
    assert rows[1]["plan"]["budget"]["asked"] == spent
    assert rows[1]["plan"]["trainable_parameters"] <= spent


@pytest.mark.parametrize("specs", [["uniform", "alphalora"], ["uniform", "mola:2468"]])
def test_the_plan_that_is_saved_is_the_yamls_own_wherever_it_stands(tmp_path, model, run, specs):
    saved = tmp_path / "saved.json"
    result = run("plan", model, "--compare", *specs, "--output", saved)
    label = "alphalora" if "alphalora" in specs else "as given"
    assert f"Saved to {saved}: the plan '{label}'\n" in result.output
    assert Plan.load(saved).strategy["name"] == "alphalora"


def test_numbers_that_cost_something_else_are_refused_with_both(tmp_path, model, run):
    path = config(tmp_path, model, total_experts=20)
    said = " ".join(run("plan", path, "--compare", "counts:[4, 4, 4, 5]").output.split())
    assert "one budget, total_experts 20, but counts takes none and comes to 17" in said
    path = config(tmp_path, model, total_parameters=100_000)
    said = " ".join(run("plan", path, "--compare", "counts:[1, 1, 1, 1]").output.split())
    assert "total_parameters 100,000, but counts takes none and comes to 1" in said
    saved = tmp_path / "plan.json"
    assert run("plan", path, "--output", saved).exit_code == 0
    assert Plan.load(saved).budget["unspent"] > 0
    own = run("plan", path, "--compare", f"counts+experts={saved}")
    assert own.exit_code == 0, own.output


def test_a_saved_plan_is_the_first_column(tmp_path, model, run, columns):
    saved = tmp_path / "plan.json"
    run("plan", config(tmp_path, model, total_experts=11), "--output", saved)
    rows = columns(config(tmp_path, model, plan=str(saved)), "beta=0")
    assert Plan.from_dict(rows[0]["plan"]) == Plan.load(saved)
    assert rows[0]["stability"] is None
    assert rows[1]["plan"]["total_experts"] == 11


@pytest.mark.usefixtures("combinations")
def test_a_plan_by_spectra_varies_with_estimators_and_resamples_and_others_do_not(
    tmp_path, model, columns
):
    rows = columns(config(tmp_path, model, total_experts=28), "alphalora", "hill", "ks", "uniform")
    over = {one["over"]: one for one in rows[0]["stability"]}
    assert (over["estimators"]["plans"], over["resamples"]["plans"]) == (2, 20)
    assert 0 < over["resamples"]["moved"] < 1
    numbers = [Plan.from_dict(row["plan"]).numbers for row in rows]
    found = [rank_correlation(numbers[0], other) or 0.0 for other in numbers[1:3]]
    assert over["estimators"]["rank_correlation"] == pytest.approx(sum(found) / 2)
    assert rows[3]["stability"] == []
    assert rows[3]["rank_correlation"] is None


def test_the_table_says_how_plans_differ_and_how_stable_they_are(tmp_path, model, run):
    picture, first = tmp_path / "compared.html", tmp_path / "first.json"
    options = ["--compare", "hill", "mola:2468", "--plot", picture, "--output", first]
    result = run("plan", model, *options)
    assert result.exit_code == 0, result.output
    table, _, _ = result.output.partition("Drawn in")
    assert max(map(len, table.splitlines())) <= 80
    for words in (
        "as given",
        "budget: 20 experts",
        "trainable",
        "left over",
        "rank correlation",
        "experts that move",
        "stability: resamples",
        "fixed",
        "from 20 resamples of the spectra",
        "3 mola:2468",
    ):
        assert words in table
    assert "mola:2468" in picture.read_text()
    assert Plan.load(first).strategy["options"]["estimator"] == "xmin_peak"


@pytest.mark.usefixtures("combinations")
def test_a_plan_stands_beside_its_opposite_and_its_shuffle(model, run, columns):
    specs = ["alphalora", "alphalora+opposite", "alphalora+order=shuffled+order_seed=3"]
    rows = columns(model, *specs)
    assert labels(rows) == specs
    plans = [Plan.from_dict(row["plan"]) for row in rows]
    assert [one.control for one in plans] == [None, "opposite", "shuffled"]
    histograms = [sorted(one.numbers.values()) for one in plans]
    assert histograms[0] == histograms[1] == histograms[2]
    assert len({one.trainable_parameters for one in plans}) == 1
    assert rows[1]["rank_correlation"] < 0
    assert rows[0]["stability"] and rows[1]["stability"] is rows[2]["stability"] is None
    shown = run("plan", model, "--compare", "alphalora", "opposite", "shuffled").output
    assert "rank correlation" in shown and "2 opposite" in shown and "3 shuffled" in shown


@pytest.mark.usefixtures("combinations")
def test_a_control_in_the_yaml_is_compared_with_the_plan_by_the_scores(tmp_path, model, columns):
    control = {"strategy": "alphalora", "order": "shuffled", "order_seed": 3}
    path = config(tmp_path, model, total_experts=20, allocation=control)
    rows = columns(path, "order=scores", "opposite", "order_seed=4")
    found = [Plan.from_dict(row["plan"]).strategy["options"] for row in rows]
    assert [(one.get("order"), one.get("order_seed")) for one in found] == [
        ("shuffled", 3),
        (None, None),
        ("opposite", None),
        ("shuffled", 4),
    ]
    saved = tmp_path / "control.json"
    Plan.from_dict(rows[0]["plan"]).save(saved)
    again = columns(config(tmp_path, model, plan=str(saved)), "order=scores")
    assert [row["plan"] for row in again] == [row["plan"] for row in rows[:2]]


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
    path = config(tmp_path, model, total_experts=40)
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
    path = config(tmp_path, model, total_experts=40)
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
    path = config(tmp_path, model, allocation="eva", total_experts=40)
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
    own, other = columns(config(tmp_path, model, allocation=rule), "sensitivity+percentile=null")
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
    columns(config(tmp_path, model, total_experts=40), "sensitivity", "summed")
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
    rows = columns(config(tmp_path, model, total_experts=40), "eva+granularity=block", "spread")
    assert host.loaded == ["eva"], "as many components as rho 2 asks for"
    assert [len(row["plan"]["modules"][0]["explained"]) for row in rows[1:]] == [20, 20]


def _summed(problem):
    values = problem.sensitivities["a"]
    return {unit: sum(values[name] for name in names) for unit, names in problem.units.items()}


def test_a_plan_by_gradients_says_what_it_was_measured_on(tmp_path, model, run, host):
    path = config(tmp_path, model, allocation="sensitivity", total_experts=40)
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
    rows = columns(config(tmp_path, model, total_experts=40), "sensitivity")
    assert rows[1]["stability"] is None
