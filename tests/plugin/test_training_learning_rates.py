"""Groups of an optimizer, split by the kind of parameter."""

import pytest
import torch
from transformers import Trainer, TrainingArguments
from transformers.optimization import Adafactor

from axolotl_alphalora.plugin.training import (
    check_ratios,
    lr_ratios,
    scale_learning_rates,
    split_groups,
)
from helpers.balancing import Rows, adapted, uneven_rows


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


@pytest.mark.parametrize(
    ("saved", "own", "factors"),
    [
        ([1e-3, 1e-3], [1e-3], []),  # a group without parameters
        ([1e-3, 1e-4, 1e-3], [1e-3, 1e-4], [0.1]),
        ([1e-3, 4e-3], [2e-3, 8e-3], [4.0]),  # another learning rate is the host's matter
        ([1e-3, 4e-3, 5e-5], [2e-3, 8e-3, 5e-5], [4.0]),  # beside an embedding_lr
        ([5e-5, 1e-3], [5e-5, 2e-3], []),
    ],
)
def test_a_run_resumes_with_the_ratios_of_its_checkpoint(saved, own, factors):
    check_ratios(saved, own, max(own) if not factors else own[0], factors)


@pytest.mark.parametrize(
    ("saved", "own", "factors"),
    [
        ([1e-3], [1e-3, 1e-4], [0.1]),
        ([1e-3, 1e-4], [1e-3], []),
        ([1e-3, 4e-3], [1e-3, 8e-3], [8.0]),
        ([1e-3, 4e-3, 5e-5], [1e-3, 8e-3, 5e-5], [8.0]),
        ([1e-3, 4e-3], [1e-3, 4e-3, 1e-4], [4.0, 0.1]),
    ],
)
def test_other_ratios_than_the_checkpoint_s_are_refused(saved, own, factors):
    with pytest.raises(ValueError, match="`alphalora.router_lr_ratio`.*Set it back"):
        check_ratios(saved, own, own[0], factors)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_bnb_8bit"])
def test_a_changed_ratio_is_refused_by_the_trainer_whatever_its_optimizer(
    tiny_llama, trainer_folder, optim
):
    def trained(factors, checkpoint=None):
        trainer = Trainer(
            adapted(tiny_llama),
            TrainingArguments(
                str(trainer_folder),
                max_steps=1 if checkpoint is None else 2,
                save_steps=1,
                optim=optim,
                use_cpu=True,
                report_to="none",
            ),
            train_dataset=Rows(uneven_rows()),
        )
        trainer.args.loraplus_lr_ratio = None  # as all arguments of Axolotl have it
        scale_learning_rates(trainer, factors)
        trainer.train(resume_from_checkpoint=checkpoint)

    trained({"alphalora_router": 4.0})
    checkpoint = str(trainer_folder / "checkpoint-1")
    for other in ({"alphalora_router": 8.0}, {}):
        with pytest.raises(ValueError, match="learning rates of the checkpoint are"):
            trained(other, checkpoint)
    trained({"alphalora_router": 4.0}, checkpoint)
