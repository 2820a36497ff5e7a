"""Groups of an optimizer, split by the kind of parameter."""

import pytest
import torch
from transformers.optimization import Adafactor

from axolotl_alphalora.plugin.training import check_ratios, lr_ratios, split_groups
from helpers.balancing import adapted


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def test_kinds_without_a_ratio_of_their_own_are_not_split():
    assert lr_ratios(None, 1.0) == {}
    assert lr_ratios(16.0, 1.0) == {"alphalora_B": 16.0}
    assert lr_ratios(None, 0.1) == {"alphalora_router": 0.1}


@pytest.mark.parametrize("router_rank", [None, 3])
def test_every_parameter_stays_in_a_group_with_the_settings_of_its_old_one(tiny_llama, router_rank):
    model = adapted(tiny_llama, router_rank=router_rank)
    parameters = trainable(model)
    half = len(parameters) // 2
    groups = [
        {"params": parameters[:half], "weight_decay": 0.1},
        {"params": parameters[half:], "weight_decay": 0.0, "lr": 0.5},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.25)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    split_groups(optimizer, model, {"alphalora_B": 4.0, "alphalora_router": 0.5})
    names = {id(p): name for name, p in model.named_parameters()}
    seen = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            factor = 4.0 if "alphalora_B" in names[id(p)] else 1.0
            factor = 0.5 if "alphalora_router" in names[id(p)] else factor
            assert group["lr"] == factor * (0.25 if decay[id(p)] else 0.5)
            assert group["weight_decay"] == decay[id(p)]
            seen.append(id(p))
    assert sorted(seen) == sorted(map(id, parameters))


def test_an_optimizer_that_sets_its_own_rates_is_refused(tiny_llama):
    model = adapted(tiny_llama)
    optimizer = Adafactor(trainable(model), relative_step=True)
    with pytest.raises(ValueError, match="Adafactor sets its own"):
        split_groups(optimizer, model, {"alphalora_B": 4.0})


def test_an_optimizer_without_the_parameters_is_refused(tiny_llama):
    model = adapted(tiny_llama)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match="SGD does not hold the experts"):
        split_groups(optimizer, model, {"alphalora_B": 4.0})


def optimizer_of(model, factors):
    """An optimizer as a run has it when its checkpoint is loaded: with a scheduler."""
    optimizer = torch.optim.AdamW(trainable(model), lr=0.25)
    if factors:
        split_groups(optimizer, model, factors)
    optimizer.register_load_state_dict_pre_hook(check_ratios)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    return optimizer


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({}, {"alphalora_router": 0.1}),
        ({"alphalora_router": 0.1}, {}),
        ({"alphalora_router": 4.0}, {"alphalora_router": 8.0}),
        ({"alphalora_B": 4.0}, {"alphalora_router": 4.0, "alphalora_B": 4.0}),
    ],
)
def test_other_ratios_than_the_checkpoint_s_are_refused_on_resume(tiny_llama, before, now):
    model = adapted(tiny_llama)
    saved = optimizer_of(model, before).state_dict()
    optimizer_of(model, before).load_state_dict(saved)
    with pytest.raises(ValueError, match="`alphalora.router_lr_ratio`.*Set it back"):
        optimizer_of(model, now).load_state_dict(saved)


def test_another_learning_rate_with_the_same_ratios_is_the_host_s_matter(tiny_llama):
    model, factors = adapted(tiny_llama), {"alphalora_B": 4.0}
    saved = optimizer_of(model, factors).state_dict()
    for group in saved["param_groups"]:
        group["initial_lr"] /= 10
    optimizer_of(model, factors).load_state_dict(saved)
