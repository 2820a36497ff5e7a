"""`--compare`: several plans of one budget side by side."""

import json

import pytest

from axolotl_alphalora.allocation import Plan
from axolotl_alphalora.planning import rank_correlation
from helpers.plan_command import labels, linear


@pytest.mark.usefixtures("combinations")
def test_each_column_is_the_plan_that_its_options_alone_would_give(tmp_path, model, run, columns):
    def plan(**allocation):
        return linear(tmp_path, model, total_experts=13, allocation=allocation)

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
        linear(tmp_path, model, total_parameters=60_000, **shape), "uniform", "mola:1234"
    )
    for row in rows:
        assert {key: row["plan"][key] for key in shape} == shape
        assert row["plan"]["budget"]["spent"] == row["plan"]["trainable_parameters"] <= 60_000
    allocation = {"strategy": "counts", "experts": [1, 2, 3, 4]}
    own = columns(linear(tmp_path, model, allocation=allocation, **shape), "counts:[4, 3, 2, 1]")
    assert len({row["plan"]["trainable_parameters"] for row in own}) == 1


def test_the_yamls_own_plan_is_left_out_where_a_spec_asks_for_the_same(model, columns):
    assert labels(columns(model, "uniform", "mola:24")) == ["as given", "uniform", "mola:24"]
    assert labels(columns(model, "uniform", "alphalora")) == ["uniform", "alphalora"]
    assert labels(columns(model, "uniform", "beta=2.5")) == ["uniform", "beta=2.5"]


def test_all_plans_get_what_a_plan_of_its_own_numbers_comes_to(tmp_path, model, columns):
    rows = columns(linear(tmp_path, model, allocation="mola:1357"), "alphalora", "counts:[4,4,4,4]")
    assert [row["plan"]["total_experts"] for row in rows] == [16, 16, 16]
    assert rows[0]["plan"]["budget"]["kind"] is None
    counts = {"strategy": "counts", "experts": {"q_proj": 2, ".*": 1}}
    rows = columns(linear(tmp_path, model, allocation=counts), "mola:1357")
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
    path = linear(tmp_path, model, total_experts=20)
    said = " ".join(run("plan", path, "--compare", "counts:[4, 4, 4, 5]").output.split())
    assert "one budget, total_experts 20, but counts takes none and comes to 17" in said
    path = linear(tmp_path, model, total_parameters=100_000)
    said = " ".join(run("plan", path, "--compare", "counts:[1, 1, 1, 1]").output.split())
    assert "total_parameters 100,000, but counts takes none and comes to 1" in said
    saved = tmp_path / "plan.json"
    assert run("plan", path, "--output", saved).exit_code == 0
    assert Plan.load(saved).budget["unspent"] > 0
    own = run("plan", path, "--compare", f"counts+experts={saved}")
    assert own.exit_code == 0, own.output


def test_a_saved_plan_is_the_first_column(tmp_path, model, run, columns):
    saved = tmp_path / "plan.json"
    run("plan", linear(tmp_path, model, total_experts=11), "--output", saved)
    rows = columns(linear(tmp_path, model, plan=str(saved)), "beta=0")
    assert Plan.from_dict(rows[0]["plan"]) == Plan.load(saved)
    assert rows[0]["stability"] is None
    assert rows[1]["plan"]["total_experts"] == 11


@pytest.mark.usefixtures("combinations")
def test_a_plan_by_spectra_varies_with_estimators_and_resamples_and_others_do_not(
    tmp_path, model, columns
):
    rows = columns(linear(tmp_path, model, total_experts=28), "alphalora", "hill", "ks", "uniform")
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
    path = linear(tmp_path, model, total_experts=20, allocation=control)
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
    again = columns(linear(tmp_path, model, plan=str(saved)), "order=scores")
    assert [row["plan"] for row in again] == [row["plan"] for row in rows[:2]]
