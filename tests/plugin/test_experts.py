"""What the host and its trainers do to experts."""

import logging
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.plugin.experts import check_trained, undo_casts, warn_of_dropout, weights
from helpers.balancing import adapted


def test_frozen_experts_are_an_error(tiny_llama):
    model = adapted(tiny_llama)
    model.add_adapter("ref", model.peft_config["default"])  # TRL's reference is frozen
    check_trained(model)
    name = "model.layers.1.self_attn.v_proj"
    router = model.get_base_model().get_submodule(name).alphalora_router["default"]
    router.requires_grad_(False)
    with pytest.raises(ValueError, match=f"of 1 layers are frozen, .*{name} among them"):
        check_trained(model)


def cast(model):
    """What TRL does to what trains on a quantised base."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_trl_casts_has_its_precision_and_values_back(tiny_llama, dtype):
    torch.manual_seed(0)
    names = ["q_proj", "v_proj"]
    config = AlphaLoraConfig(target_modules=names, modules_to_save=["lm_head"], init_weights=False)
    model = get_peft_model(tiny_llama.to(dtype), config)
    before = weights(model)
    for value in before.values():
        value.add_(torch.rand_like(value))  # as training leaves them: bf16 has no such values
    values = {name: value.clone() for name, value in before.items()}
    head = next(name for name in before if "lm_head" in name)
    assert len(values) == 13 and before[head].dtype == dtype
    assert {value.dtype for name, value in values.items() if name != head} == {torch.float32}
    cast(model)
    undo_casts(model, before, fp32=True)
    for name, value in weights(model).items():
        torch.testing.assert_close(value, values[name], rtol=0, atol=0)


@pytest.mark.parametrize("fp32", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_a_trainer_wraps_and_casts_has_the_precision_it_needs(tiny_llama, dtype, fp32):
    config = AlphaLoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(tiny_llama.to(dtype), config, autocast_adapter_dtype=fp32)
    cast(model)
    undo_casts(model, {}, fp32=fp32)
    found = {"lm_head" in name: value.dtype for name, value in weights(model).items()}
    assert found == {True: dtype, False: torch.float32 if fp32 else torch.bfloat16}


@pytest.mark.parametrize(
    ("dropout", "disabled", "said"), [(0.05, True, 1), (0.0, True, 0), (0.05, False, 0)]
)
def test_dropout_that_a_trainer_switches_off_is_said(dropout, disabled, said, monkeypatch, caplog):
    monkeypatch.setattr("axolotl.utils.logging.get_logger", logging.getLogger)
    args = SimpleNamespace(disable_dropout=disabled)
    warn_of_dropout(SimpleNamespace(args=args), dropout)
    warn_of_dropout(SimpleNamespace(args=SimpleNamespace()), dropout)  # of transformers
    assert caplog.text.count("`lora_dropout: 0.05` does nothing") == said
