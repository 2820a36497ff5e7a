"""What a configuration asks of a plan."""

import pytest

from axolotl_alphalora.allocation import Budget, build_plan
from axolotl_alphalora.mixture import Mixture
from axolotl_alphalora.planning import (
    Targets,
    check_optimizer,
    check_plan,
    plan_request,
    read_block,
    read_source,
)
from axolotl_alphalora.planning.request import REQUEST_KEYS
from helpers.allocating import model
from helpers.allocating import plan as planned


class Spied(dict):
    """A configuration that knows which of its keys were read."""

    def __init__(self, *values, **keys):
        super().__init__(*values, **keys)
        self.read = set()

    def get(self, key, default=None):
        self.read.add(key)
        return super().get(key, default)


def request(**keys):
    cfg = {"base_model": "some/model", **keys}
    return plan_request(cfg, read_block(cfg))


def test_a_request_is_read_from_the_keys_that_an_allocation_depends_on_and_from_no_other():
    cfg = Spied(base_model="some/model", alphalora={"memory_mib": 8})
    plan_request(cfg, read_block(cfg))
    assert cfg.read == set(REQUEST_KEYS)


def test_keys_and_block_make_one_request():
    made = request(
        lora_r=4,
        lora_target_modules=["q_proj"],
        optimizer="sgd",
        alphalora={"allocation": "mola:24", "memory_mib": 8, "top_k": 1, "spend": "rank"},
    )
    assert made.targets == Targets(modules=["q_proj"])
    assert (made.rank, made.mixture.top_k, made.spend, made.optimizer) == (4, 1, "rank", "sgd")
    assert made.budget == Budget(memory_mib=8)
    assert (made.strategy, made.options) == ("mola", {"shape": 24})
    assert made.settings.shape == [2, 4]


def test_a_strategy_with_numbers_of_its_own_is_asked_with_no_budget():
    assert request(alphalora={"allocation": "counts:[1, 2]"}).budget is None
    assert request().budget == Budget(experts_per_block=5)


@pytest.mark.parametrize("key", ["base_model", "optim_args", "lora_modules_to_save"])
def test_what_makes_a_memory_budget_uncountable_is_named(key):
    values = {"base_model": "", "optim_args": "x=1", "lora_modules_to_save": ["lm_head"]}
    with pytest.raises(ValueError, match=f"`{key}`"):
        request(**{key: values[key]}, alphalora={"memory_mib": 8})


SHAPE = {"top_k": 0.25, "segments": 4, "router_rank": 3, "share_a": True}


def test_a_mixture_is_asked_for_as_the_yaml_says_it():
    assert request(lora_r=8, alphalora=SHAPE).mixture == Mixture(**SHAPE)
    assert request().mixture == Mixture()


def test_an_lora_r_that_cannot_be_cut_is_refused_by_its_key():
    with pytest.raises(ValueError, match="`lora_r` is 6, which segments: 4 .* multiple of 4"):
        request(lora_r=6, alphalora={"segments": 4})
    with pytest.raises(ValueError, match=r"\(lora_r\) is 8, which segments: 3 cannot cut"):
        build_plan(request(alphalora={"segments": 3, "allocation": "uniform"}), model(2))


def test_a_saved_plan_of_another_shape_is_refused_with_every_difference():
    plan = planned("uniform", rank=8, **SHAPE)
    check = {"plan": "plan.json"}
    with pytest.raises(ValueError) as error:
        check_plan(plan, request(alphalora=check))
    said = str(error.value)
    for part in (
        "the plan says top_k 0.25, but alphalora.top_k is 2",
        "the plan says segments 4, but alphalora.segments is 1",
        "the plan says router_rank 3, but alphalora.router_rank is null",
        "the plan says share_a true, but alphalora.share_a is false",
    ):
        assert part in said
    with pytest.raises(ValueError) as error:
        check_plan(plan, request(alphalora=check | SHAPE | {"segments": 2}))
    assert str(error.value) == "the plan says segments 4, but alphalora.segments is 2"


def test_a_saved_plan_of_a_budget_in_memory_is_for_its_optimizer(tmp_path):
    plan = planned("uniform", budget={"memory_mib": 1.0}, optimizer="adamw_8bit")
    check_optimizer(plan, {"optimizer": "adamw_8bit"})
    check_optimizer(plan, {"optimizer": "paged_adamw_8bit"})  # whose state is as large
    check_optimizer(planned("uniform"), {"optimizer": "ademamix", "optim_args": "x=1"})
    for keys, message in (
        ({"optimizer": "ademamix"}, "state of `optimizer: adamw_8bit`, but this run's is ademamix"),
        ({}, "but this run's is adamw_torch_fused"),
        ({"optimizer": "adamw_8bit", "optim_args": "x=1"}, "which `optim_args` may change. Take"),
        ({"lora_modules_to_save": ["lm_head"]}, "beside them. Take .*experts: PLAN}}`"),
    ):
        with pytest.raises(ValueError, match=message):
            check_optimizer(plan, keys)
    ranks = planned("uniform", budget={"memory_mib": 1.0}, optimizer="adamw_8bit", spend="rank")
    with pytest.raises(ValueError, match="experts: PLAN}, spend: rank}`"):
        check_optimizer(ranks, {})
    plan.save(tmp_path / "plan.json")
    config = tmp_path / "config.yml"
    block = f"alphalora: {{plan: {tmp_path}/plan.json}}"
    config.write_text(f"base_model: some/model\noptimizer: ademamix\n{block}\n")
    for strategy in (None, "uniform"):
        with pytest.raises(ValueError, match=r"config\.yml: `alphalora\.plan`: .*ademamix"):
            read_source(config, strategy)
