"""An inspection's summaries, against numbers worked out by hand."""

import math
from statistics import fmean

import pytest

from axolotl_alphalora.inspection import (
    Inspection,
    RoutingSummary,
    distance,
    specialisation,
)
from helpers import inspecting
from helpers.inspecting import KINDS, PLAN, usage, usages


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return inspecting.bare(tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def watched(bare):
    return inspecting.watched(bare)


def test_a_block_is_the_mean_of_its_experts_and_of_its_modules(bare):
    assert [block.name for block in bare.blocks] == [f"model.layers.{i}" for i in range(3)]
    assert [block.experts for block in bare.blocks] == [1, 3, 4]
    assert [block.ranks for block in bare.blocks] == [(4,), (2, 4), (4,)]
    first, second, _ = bare.blocks
    rows = bare.by_block["model.layers.1"]
    experts = [expert for row in rows for expert in row.experts]
    assert second.mean_norm == pytest.approx(fmean(expert.norm for expert in experts))
    assert second.mean_effective_rank == pytest.approx(fmean(e.effective_rank for e in experts))
    assert second.redundancy == pytest.approx(fmean(row.redundancy for row in rows))
    assert second.max_cosine == max(row.max_cosine for row in rows)
    assert first.redundancy is first.max_cosine is first.routing is second.routing is None


def test_the_adapter_as_a_whole(bare):
    assert bare.module_experts == len(KINDS) * (1 + 3 + 4)
    assert bare.parameters == sum(row.parameters for row in bare.modules)
    assert bare.strategy == PLAN["strategy"]
    assert bare.redundancy == pytest.approx(fmean(r.redundancy for r in bare.modules if r.routed))
    assert bare.tasks == () and bare.routing is None


def test_routers_of_a_block_and_of_a_task_are_summarised(watched):
    first, second, third = watched.blocks
    assert first.routing is None and second.routing.routers == third.routing.routers == len(KINDS)
    rows = [watched.usage_of(row.name) for row in watched.by_block["model.layers.2"]]
    assert third.routing.entropy == pytest.approx(fmean(row.entropy for row in rows))
    assert third.routing.load_cv == pytest.approx(fmean(row.load_cv for row in rows))
    assert third.routing.load_max == pytest.approx(fmean(row.load_max for row in rows))
    assert third.routing.dead == len(KINDS) and watched.routing.dead == 2 * len(KINDS)
    assert third.routing.top_gate == pytest.approx(0.7)
    assert [(task.name, task.tokens) for task in watched.tasks] == [("code", 100), ("maths", 100)]
    for task in watched.tasks:
        assert task.routing.routers == 2 * len(KINDS) and task.routing.specialisation is None
        assert task.distance == pytest.approx(watched.task_distance(task.name, watched.modules))
    assert watched.task_distance("code", watched.by_block["model.layers.0"]) is None


def test_specialisation_is_the_mutual_information_of_task_and_expert():
    joint = [[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]
    expert = [fmean(column) for column in zip(*joint, strict=True)]
    information = sum(
        p / 2 * math.log((p / 2) / (0.5 * q))
        for shares in joint
        for p, q in zip(shares, expert, strict=True)
    )
    found = specialisation([usage(shares, top_k=1) for shares in joint])
    assert found == pytest.approx(information / math.log(2))
    same = [usage([0.5, 0.3, 0.2], top_k=1)] * 3
    assert specialisation(same) == pytest.approx(0, abs=1e-12)
    apart = [usage([1, 0, 0], top_k=1), usage([0, 0.5, 0.5], top_k=1)]
    assert specialisation(apart) == pytest.approx(1)
    alone = [usage([float(e == t) for e in range(3)], top_k=1) for t in range(3)]
    assert specialisation(alone) == pytest.approx(1)
    assert specialisation(same[:1]) is None


@pytest.mark.parametrize("experts, top_k, tasks", [(6, 3, 2), (5, 2, 5), (20, 8, 20)])
def test_experts_that_tell_all_they_can_of_the_task_count_as_1(experts, top_k, tasks):
    """However many of them a token has: each task has top-k experts of its own, side by side."""
    own = [{(task * experts // tasks + e) % experts for e in range(top_k)} for task in range(tasks)]
    shares = [[(e in chosen) / top_k for e in range(experts)] for chosen in own]
    assert specialisation([usage(one, top_k=top_k) for one in shares]) == pytest.approx(1)


def test_the_distance_of_a_task_is_what_would_have_to_move():
    one, other = usage([0.5, 0.5, 0]), usage([0.1, 0.5, 0.4])
    assert distance(one, [one, other]) == pytest.approx(0.2)
    assert distance(one, [one]) == 0


def test_where_all_experts_are_used_gates_tell_the_tasks_apart():
    half = (0.5, 0.5)
    code, maths = usage(half, gates=(0.9, 0.1)), usage(half, gates=(0.1, 0.9))
    assert not code.chooses and specialisation([code, maths]) > 0.5
    assert distance(code, [code, maths]) == pytest.approx(0.4)
    routing = RoutingSummary.of([code], [[code, maths]])
    assert routing.load_cv is routing.load_max is routing.dead is None
    assert routing.specialisation > 0.5
    assert RoutingSummary.of([]) is None


def test_usage_must_be_of_this_adapter(bare):
    name = bare.modules[4].name
    for wrong, message in (
        ({"code": {}}, "lacks 'all'"),
        ({"all": {name: usage([0.5, 0.5])}}, f"{name} is not of this"),
        ({"all": {"elsewhere": usage([0.5, 0.5])}}, "elsewhere is not of this"),
    ):
        with pytest.raises(ValueError, match=message):
            Inspection(bare.config, bare.modules, wrong)


def test_a_task_without_a_token_is_left_out(bare):
    found = Inspection(bare.config, bare.modules, usages(bare.modules) | {"empty": {}})
    assert [task.name for task in found.tasks] == ["code", "maths"]
