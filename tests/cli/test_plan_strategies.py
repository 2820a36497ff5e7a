"""`alphalora plan` with strategies, controls and budgets."""

import json
import re

import pytest

from axolotl_alphalora.allocation import Plan
from axolotl_alphalora.plugin import session
from axolotl_alphalora.report.plan_sentences import budget_line
from helpers.plan_command import config, plan


def test_a_control_is_called_one(tmp_path, model):
    def shown(**order):
        allocation = {"strategy": "alphalora", **order}
        done = plan(config(tmp_path, model, alphalora={"allocation": allocation}))
        return " ".join(done.output.split())

    said = "This plan is a control: the numbers of alphalora's plan, dealt"
    opposite = shown(order="opposite")
    assert f"{said} the other way round, the fewest to what had the most." in opposite
    seeded = shown(order="shuffled", order_seed=3)
    assert f"{said} at random with order_seed 3. Budget: 20 experts, met exactly." in seeded
    assert "Experts per block: alphalora, shuffled, rank 4" in seeded
    assert "control" not in shown()
    allocation = {"strategy": "uniform", "order": "opposite"}
    refused = plan(config(tmp_path, "no/model", alphalora={"allocation": allocation}))
    assert refused.exit_code == 1
    assert "`alphalora.allocation`: strategy 'uniform' goes by no scores" in refused.output


def test_a_strategy_that_measures_nothing_has_a_table_all_the_same(model):
    shown = plan(model, "--strategy", "mola:2468", "--per-module").output
    assert re.search(r"^block +score +experts", shown, re.M)
    assert " alpha " not in shown and "Ranking" not in shown
    assert "Budget: none, mola has numbers of its own." in shown
    assert re.search(r"^  mlp.down_proj +64x128 +2 +8 +[\d,]+$", shown, re.M)
    assert re.search(r"^block +experts", plan(model, "--strategy", "uniform").output, re.M)


def test_what_is_left_of_a_budget_is_said_in_its_unit(tmp_path, model):
    def budget(**block):
        changes = {"alphalora": block, "optimizer": "adamw_torch"}
        return " ".join(plan(config(tmp_path, model, **changes)).output.split())

    plan_file = tmp_path / "plan.json"
    plan(config(tmp_path, model, alphalora={"total_parameters": 20000}), "--output", plan_file)
    left = Plan.load(plan_file).budget["unspent"]
    assert 0 < left
    said = budget(total_parameters=20000)
    assert f"Budget: 20,000 trainable parameters; {left:,} are left over: no further" in said
    assert "Budget: 8 experts, met exactly." in budget(total_experts=8)
    assert "0.5 MiB for adapter, gradients and optimizer state (adamw_torch)" in budget(
        memory_mib=0.5
    )
    assert "every matrix has max_experts 2" in budget(total_parameters=10**6, max_experts=2)
    assert "has one of rank N x 4, and no router" in budget(total_experts=8, spend="rank")


def test_a_strategy_replaces_the_yamls_and_keeps_its_budget(tmp_path, model):
    block = {"total_experts": 11, "allocation": {"strategy": "alphalora", "beta": 1.0}}
    path = config(tmp_path, model, alphalora=block)

    def made(spec):
        return Plan.from_dict(json.loads(plan(path, "--strategy", spec, "--json").stdout))

    assert made("mola:24").strategy["options"] == {"shape": [2, 4]}
    assert made("mola:24").total_experts == 11
    assert made("alphalora+estimator=hill").strategy["options"]["beta"] == 1.0
    assert made("hill").strategy["options"]["estimator"] == "hill"
    saved = tmp_path / "plan.json"
    made("uniform").save(saved)
    path = config(tmp_path, model, alphalora={"plan": str(saved)})
    assert made("mola:24").total_experts == 11
    assert (
        "strategy 'counts' says itself"
        in plan(config(tmp_path, model), "--strategy", "counts:[2, 2, 2, 2]").output
    )


def test_a_strategy_in_place_of_a_saved_plan_gets_what_that_comes_to(tmp_path, model):
    saved = tmp_path / "plan.json"

    def made(spec, **block):
        plan(config(tmp_path, model, alphalora=block), "--output", saved)
        path = config(tmp_path, model, alphalora={"plan": str(saved)})
        return Plan.from_dict(json.loads(plan(path, "--strategy", spec, "--json").stdout))

    assert made("uniform", allocation="mola:1234").total_experts == 10
    left_alone = made("depth:[0, 4]", allocation="counts:[0, 1, 2, 4]")
    assert (left_alone.total_experts, left_alone.budget["min_experts"]) == (7, 0)
    numbers = made("counts:[1, 2, 3, 4]", total_experts=11, max_experts=9)
    assert list(numbers.block_numbers.values()) == [1, 2, 3, 4]
    assert numbers.budget["kind"] is None
    assert made("hill", total_experts=11, max_experts=3).budget["max_experts"] == 3


def test_why_something_is_left_is_said_of_our_own_strategies_only(tmp_path, model):
    path = tmp_path / "plan.json"
    plan(config(tmp_path, model, alphalora={"total_parameters": 20000}), "--output", path)
    ours = Plan.load(path)
    strategy = {**ours.strategy, "package": "axolotl-alphalora-extra 1.0"}
    theirs = ours.model_copy(update={"strategy": strategy})
    assert budget_line(ours).endswith(" are left over: no further expert fits.")
    assert budget_line(theirs).endswith(" are left over.")


@pytest.mark.parametrize("compared", [(), ("--compare", "uniform")])
def test_halves_of_the_samples_are_measured_for_a_comparison_alone(
    tmp_path, model, monkeypatch, compared
):
    class Host:
        def __init__(self, path, halves):
            self.halves = halves

        def plan(self, request):
            raise ValueError(f"halves: {self.halves}")

    monkeypatch.setattr(session, "HostModel", Host)
    asked = plan(config(tmp_path, model, alphalora={"allocation": "eva"}), *compared)
    assert asked.exit_code == 1 and f"halves: {bool(compared)}" in asked.output
