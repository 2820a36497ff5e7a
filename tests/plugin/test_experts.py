"""What the host and its trainers do to experts."""

import logging
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.plugin.experts import check_trained, keep_fp32, warn_of_dropout, weights
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


def test_what_trl_casts_is_put_back_to_fp32(tiny_llama):
    torch.manual_seed(0)
    base = tiny_llama.to(torch.bfloat16)
    names = ["q_proj", "v_proj"]
    config = AlphaLoraConfig(target_modules=names, modules_to_save=["lm_head"], init_weights=False)
    model = get_peft_model(base, config)
    before = weights(model)
    for value in before.values():
        value.add_(torch.rand_like(value))  # as training leaves them: bf16 has no such values
    values = {name: value.clone() for name, value in before.items()}
    assert len(values) == 12 and {value.dtype for value in values.values()} == {torch.float32}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    keep_fp32(model, before)
    for name, value in weights(model).items():
        torch.testing.assert_close(value, values[name], rtol=0, atol=0)
    head = model.get_base_model().lm_head.modules_to_save["default"].weight
    assert head.requires_grad and head.dtype == torch.bfloat16, "is trained as the base is"
    experts = next(part for name, part in model.named_parameters() if name in values)
    experts.data = experts.data.to(torch.bfloat16)
    keep_fp32(model, {})
    assert experts.dtype == torch.float32


@pytest.mark.parametrize(
    ("dropout", "disabled", "said"), [(0.05, True, 1), (0.0, True, 0), (0.05, False, 0)]
)
def test_dropout_that_a_trainer_switches_off_is_said(dropout, disabled, said, monkeypatch, caplog):
    monkeypatch.setattr("axolotl.utils.logging.get_logger", logging.getLogger)
    args = SimpleNamespace(disable_dropout=disabled)
    warn_of_dropout(SimpleNamespace(args=args), dropout)
    warn_of_dropout(SimpleNamespace(args=SimpleNamespace()), dropout)  # of transformers
    assert caplog.text.count("`lora_dropout: 0.05` does nothing") == said
