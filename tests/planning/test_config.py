"""The `alphalora:` block: defaults, contradictions, misspellings."""

import json

import pytest
from pydantic import ValidationError

from axolotl_alphalora.allocation.budget import KINDS
from axolotl_alphalora.mixture import Mixture
from axolotl_alphalora.planning.config import BUDGET, PAPER, AlphaLoraConfigBlock


def test_the_defaults_are_those_of_the_documented_yaml():
    block = AlphaLoraConfigBlock()
    assert block.model_dump() == {
        "preset": None,
        "allocation": {"strategy": "alphalora"},
        "experts_per_block": 5,
        "total_experts": None,
        "total_parameters": None,
        "memory_mib": None,
        "min_experts": 1,
        "max_experts": None,
        "spend": "experts",
        "top_k": 2,
        "segments": 1,
        "router_rank": None,
        "share_a": False,
        "aux_loss_coef": 0.001,
        "balance_over": "micro_batch",
        "router_lr_ratio": 1.0,
        "log_blocks_every": 10,
        "init_from": None,
        "init_split": "copy",
        "plan": None,
    }


def test_explicit_nulls_mean_the_defaults():
    nulls = dict.fromkeys(["allocation", *BUDGET, "spend", "plan"])
    assert AlphaLoraConfigBlock(**nulls) == AlphaLoraConfigBlock()


@pytest.mark.parametrize("name", list(AlphaLoraConfigBlock.model_fields))
def test_every_option_is_described(name):
    assert AlphaLoraConfigBlock.model_fields[name].description


def test_an_allocation_is_a_name_or_a_mapping():
    assert AlphaLoraConfigBlock(allocation="alphalora").allocation == {"strategy": "alphalora"}
    mapping = {"strategy": "alphalora", "estimator": "hill", "window": [64, 64]}
    assert AlphaLoraConfigBlock(allocation=mapping).allocation == mapping


def test_an_allocation_has_a_short_form():
    allocation = AlphaLoraConfigBlock(allocation="mola:10-2-2-2").allocation
    assert allocation == {"strategy": "mola", "shape": "10-2-2-2"}
    mapping = {"strategy": "mola:1-2", "shape": "2-3"}
    assert AlphaLoraConfigBlock(allocation=mapping).allocation["shape"] == "2-3"
    with pytest.raises(ValidationError, match="'uniform:3': strategy 'uniform' has no short form"):
        AlphaLoraConfigBlock(allocation="uniform:3")


@pytest.mark.parametrize(
    ("allocation", "mean", "least"),
    [
        ("uniform", 5, 1),
        ("mola:8642", None, 1),
        ("depth:1-3", None, 1),
        ({"strategy": "counts", "experts": [1, 2]}, None, None),
        ("sensitivity", 5, 1),
        ("eva", 5, 1),
        ({"strategy": "sensitivity", "percentile": 40}, None, None),
    ],
    ids=str,
)
def test_the_default_budget_follows_the_strategy(allocation, mean, least):
    block = AlphaLoraConfigBlock(allocation=allocation)
    assert (block.experts_per_block, block.min_experts) == (mean, least)


@pytest.mark.parametrize(
    ("key", "amount"), [("total_experts", 160), ("total_parameters", 10**7), ("memory_mib", 64.5)]
)
def test_another_budget_replaces_the_mean(key, amount):
    block = AlphaLoraConfigBlock(**{key: amount})
    assert (getattr(block, key), block.experts_per_block) == (amount, None)


def test_a_mixture_has_its_own_keys():
    block = AlphaLoraConfigBlock(top_k=0.25, segments=4, router_rank=16, share_a=True)
    assert block.mixture == Mixture(0.25, 4, 16, True)
    again = AlphaLoraConfigBlock(**json.loads(block.model_dump_json(exclude={"allocation"})))
    assert again.mixture == block.mixture
    assert AlphaLoraConfigBlock(plan="plan.json", segments=4).mixture.segments == 4


def test_a_share_is_not_bound_by_the_most_experts_of_a_module():
    block = AlphaLoraConfigBlock(top_k=0.5, max_experts=1, experts_per_block=1)
    assert block.mixture.active(1) == 1


def test_top_k_does_not_bound_ranks():
    block = AlphaLoraConfigBlock(spend="rank", max_experts=1, experts_per_block=1)
    assert (block.top_k, block.max_experts) == (2, 1)


def test_the_mean_may_be_fractional():
    assert AlphaLoraConfigBlock(experts_per_block=2.5).experts_per_block == 2.5


PAPERS = {
    "estimator": "xmin_peak",
    "window": None,
    "aggregate": "mean",
    "normalize": False,
    "beta": 2.5,
    "granularity": "block",
    "rounding": "largest_remainder",
}


def test_the_preset_paper_is_what_the_paper_uses_whatever_the_defaults_are(monkeypatch):
    """Five experts a block, the peak of the spectrum, beta 2.5; top-2 of full routers; 0.001."""
    other = {
        "spend": "rank",
        "top_k": 7,
        "segments": 7,
        "router_rank": 7,
        "share_a": True,
        "aux_loss_coef": 7.0,
        "balance_over": "global_batch",
        "router_lr_ratio": 7.0,
    }
    for name, value in other.items():
        monkeypatch.setattr(AlphaLoraConfigBlock.model_fields[name], "default", value)
    AlphaLoraConfigBlock.model_rebuild(force=True)
    try:
        assert AlphaLoraConfigBlock(segments=1, share_a=False, spend="experts").top_k == 7
        block = AlphaLoraConfigBlock(preset="paper")
    finally:
        monkeypatch.undo()
        AlphaLoraConfigBlock.model_rebuild(force=True)
    assert block.allocation == {"strategy": "alphalora", **PAPERS}
    assert (block.experts_per_block, block.total_experts, block.min_experts) == (5, None, 1)
    assert (block.top_k, block.segments, block.router_rank, block.share_a) == (2, 1, None, False)
    assert (block.aux_loss_coef, block.balance_over) == (0.001, "micro_batch")
    assert (block.router_lr_ratio, block.spend) == (1.0, "experts")
    assert AlphaLoraConfigBlock().top_k == 2
    free = {"preset", "log_blocks_every", "init_from", "init_split", "plan", "max_experts"}
    rest = set(AlphaLoraConfigBlock.model_fields) - free - {"allocation", *KINDS[1:]}
    assert rest == set(PAPER), "every key that makes the experts and their training is the paper's"


def test_what_is_said_goes_before_the_preset():
    said = {"allocation": "alphalora:hill", "total_experts": 9, "max_experts": 4, "top_k": 3}
    block = AlphaLoraConfigBlock(preset="paper", **said)
    assert block.allocation == {"strategy": "alphalora", **PAPERS, "estimator": "hill"}
    assert (block.total_experts, block.experts_per_block, block.top_k) == (9, None, 3)
    again = AlphaLoraConfigBlock(**block.model_dump())  # as Ray workers read it
    assert again == block
    other = AlphaLoraConfigBlock(preset="paper", allocation="mola:2468", segments=4)
    assert other.allocation == {"strategy": "mola", "shape": 2468}
    assert (other.experts_per_block, other.segments, other.top_k) == (None, 4, 2)


def test_the_preset_leaves_a_plan_its_numbers():
    block = AlphaLoraConfigBlock(preset="paper", plan="plan.json", segments=2)
    assert block.allocation is block.experts_per_block is block.spend is None
    assert (block.top_k, block.segments, block.aux_loss_coef) == (2, 2, 0.001)


def test_a_plan_leaves_nothing_else_to_decide_but_the_routing():
    block = AlphaLoraConfigBlock(plan="plan.json", top_k=3, aux_loss_coef=0)
    assert block.model_dump(exclude_none=True) == {
        "plan": "plan.json",
        "top_k": 3,
        "segments": 1,
        "share_a": False,
        "aux_loss_coef": 0,
        "balance_over": "micro_batch",
        "router_lr_ratio": 1.0,
        "log_blocks_every": 10,
        "init_split": "copy",
    }


@pytest.mark.parametrize(
    "options",
    [
        {"allocation": "uniform"},
        {"experts_per_block": 5},
        {"total_experts": 10},
        {"min_experts": 1},
        {"max_experts": 8},
        {"total_parameters": 10},
        {"memory_mib": 10},
        {"spend": "rank"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_plan_contradicts_what_it_decides(options):
    with pytest.raises(ValidationError) as error:
        AlphaLoraConfigBlock(plan="plan.json", **options)
    assert "alphalora.plan" in str(error.value)
    assert f"alphalora.{next(iter(options))}" in str(error.value)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (
            {"experts_per_block": 5, "total_experts": 10},
            ["`alphalora:` experts_per_block and total_experts are both budgets"],
        ),
        (
            {"memory_mib": 5, "total_parameters": 10},
            ["`alphalora:` total_parameters and memory_mib are both budgets"],
        ),
        ({"min_experts": 4, "max_experts": 3}, ["max_experts must be", "at least 4 (min_experts)"]),
        ({"experts_per_block": 2, "min_experts": 3}, ["experts_per_block: 2", "min_experts: 3"]),
        ({"experts_per_block": 9, "max_experts": 8}, ["experts_per_block: 9", "max_experts: 8"]),
        ({"top_k": 9, "max_experts": 8}, ["top_k: 9", "max_experts: 8"]),
        ({"allocation": {"shape": "x"}}, ["alphalora.allocation", "strategy"]),
        ({"allocation": ""}, ["alphalora.allocation", "strategy"]),
        ({"allocation": 5}, ["allocation", "name of a strategy"]),
        ({"allocation": "uniforme"}, ["alphalora.allocation", "unknown strategy 'uniforme'"]),
        ({"allocation": "hill"}, ["hill is an estimator of alphalora: write alphalora:hill"]),
        (
            {"allocation": {"strategy": "alphalora", "experts_per_block": 5}},
            ["`experts_per_block` is no option of a strategy", "beside `allocation`"],
        ),
        ({"estimator": "hill"}, ["`allocation: {strategy: alphalora, estimator: hill}`"]),
        ({"lora_r": 8}, ["`alphalora.lora_r`", "outside of the `alphalora:` block"]),
        (
            {"allocation": {"strategy": "alphalora", "estimator": "hil"}},
            ["alphalora.allocation", "unknown estimator 'hil'", "xmin_peak, "],
        ),
        (
            {"allocation": {"strategy": "alphalora", "gamma": 2}},
            ["alphalora.allocation", "no option 'gamma'", "beta"],
        ),
        ({"experts_per_block": 0}, ["experts_per_block", "greater than 0"]),
        ({"experts_per_block": float("nan")}, ["experts_per_block", "finite"]),
        ({"total_experts": 0}, ["total_experts"]),
        ({"total_experts": 2.5}, ["total_experts"]),
        ({"min_experts": -1}, ["min_experts"]),
        ({"memory_mib": True}, ["memory_mib", "expected a number, got true"]),
        ({"spend": "ranks"}, ["spend", "'experts' or 'rank'"]),
        (
            {"allocation": {"strategy": "counts", "experts": [1]}, "total_experts": 5},
            ["strategy 'counts' says itself", "remove total_experts"],
        ),
        (
            {"allocation": {"strategy": "counts", "experts": "no.json"}},
            ["option 'experts' of strategy 'counts'", "cannot read the plan no.json"],
        ),
        (
            {"allocation": {"strategy": "sensitivity", "within": "kind"}},
            ["alphalora.allocation", "set percentile too"],
        ),
        (
            {"allocation": {"strategy": "alphalora", "rounding": "published"}, "memory_mib": 5},
            ["rounding: published is defined for a budget in experts, not memory_mib"],
        ),
        ({"max_experts": 3}, ["experts_per_block: 5`, the default, is more than"]),
        ({"allocation": "mola:2x4"}, ["option 'shape' of strategy 'mola'", "not '2x4'"]),
        ({"top_k": 0}, ["top_k must be at least 1, not 0"]),
        ({"top_k": True}, ["top_k must be a whole number", "True"]),
        ({"top_k": 1.0}, ["top_k must be a whole number", "a share", "in (0, 1), not 1.0"]),
        ({"top_k": "two"}, ["top_k must be a whole number", "'two'"]),
        ({"segments": 0}, ["segments must be at least 1, not 0"]),
        ({"segments": 2.0}, ["segments must be a whole number"]),
        ({"segments": True}, ["segments must be a whole number"]),
        ({"router_rank": 0}, ["router_rank must be at least 1, not 0"]),
        ({"router_rank": "full"}, ["router_rank must be a whole number"]),
        ({"share_a": 1}, ["share_a must be true or false, not 1"]),
        (
            {"spend": "rank", "segments": 2, "router_rank": 4, "share_a": True},
            [
                "alphalora.spend: rank gives every layer one expert and no router",
                "alphalora.segments, alphalora.router_rank, alphalora.share_a",
            ],
        ),
        ({"aux_loss_coef": -1}, ["aux_loss_coef"]),
        ({"aux_loss_coef": float("inf")}, ["aux_loss_coef", "finite"]),
        ({"plan": ""}, ["plan"]),
    ],
)
def test_impossible_options_name_the_key(options, parts):
    with pytest.raises(ValidationError) as error:
        AlphaLoraConfigBlock(**options)
    for part in parts:
        assert part in str(error.value)


def test_a_misspelt_option_names_the_nearest_one():
    with pytest.raises(ValidationError, match="did you mean|Did you mean") as error:
        AlphaLoraConfigBlock(expert_per_block=5, topk=1)
    assert "`alphalora.expert_per_block`" in str(error.value)
    assert "`alphalora.experts_per_block`" in str(error.value)
    assert "`alphalora.top_k`" in str(error.value)


def test_an_option_like_no_other_lists_the_valid_ones():
    with pytest.raises(ValidationError, match="Valid: preset, allocation"):
        AlphaLoraConfigBlock(zzz=1)
