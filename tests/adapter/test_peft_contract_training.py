"""What PEFT promises of a method in training, generation and status, for each kind of layer."""

import pytest
import torch
from peft import get_peft_model, prepare_model_for_kbit_training
from torchao.utils import TorchAOBaseTensor

from axolotl_alphalora.blocks import block_name
from helpers import reference
from helpers.balancing import router_inputs
from helpers.kinds import (
    DECODERS,
    IDS,
    KINDS,
    QUANTISED,
    Mlp,
    X,
    adapted,
    assert_same,
    config,
    every_kind,
    forward,
    fresh,
    layers,
    outputs,
    trainable,
)


def gradients(model):
    model.train()
    forward(model)[1].backward()
    return {n: p.grad.clone() for n, p in trainable(model).items()}


def copies(model):
    return {
        name: value.dequantize() if isinstance(value, TorchAOBaseTensor) else value.clone()
        for name, value in model.state_dict().items()
    }


@pytest.mark.works("PEFT", "half-precision bases", "bf16 and fp16")
@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("autocast", [True, False], ids=["fp32 experts", "half experts"])
def test_the_experts_of_a_half_precision_base_are_fp32_unless_told_otherwise(kind, dtype, autocast):
    model = get_peft_model(fresh(kind, dtype), config(kind), autocast_adapter_dtype=autocast)
    # An 8-bit weight says nothing of the dtype that is computed in.
    own = torch.float32 if autocast or kind == "8-bit" else dtype
    assert {p.dtype for p in trainable(model).values()} == {own}
    seen = set()
    for layer in layers(model).values():
        layer.register_forward_hook(lambda layer, args, out: seen.add((args[0].dtype, out.dtype)))
    assert all(g.isfinite().all() and g.any() for g in gradients(model).values())
    assert seen == {(dtype, dtype)}


@pytest.mark.works("PEFT", "half-precision bases", "bf16 and fp16")
@every_kind
def test_an_adapter_loaded_or_added_later_follows_the_same_rule(kind, tmp_path):
    half = torch.bfloat16
    model = get_peft_model(fresh(kind, half), config(kind))
    model.save_pretrained(tmp_path)
    model.add_adapter("added", config(kind))
    model.load_adapter(tmp_path, "loaded")
    model.load_adapter(tmp_path, "narrow", autocast_adapter_dtype=False)
    dtypes = {n.rpartition(".")[2]: p.dtype for n, p in model.named_parameters() if "alphal" in n}
    assert dtypes.pop("narrow") == (torch.float32 if kind == "8-bit" else half)
    assert dtypes == dict.fromkeys(("default", "added", "loaded"), torch.float32)


@pytest.mark.works("PEFT", "autocast")
@every_kind
def test_training_under_autocast_is_training_but_for_rounding(kind):
    # All experts are used, so that no rounding chooses another one.
    expected = gradients(adapted(kind, top_k=3))
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(adapted(kind, top_k=3))
    assert {g.dtype for g in got.values()} == {torch.float32}
    for name, want in expected.items():
        assert (got[name] - want).norm() < 0.1 * want.norm(), name


@pytest.mark.works("PEFT", "training", "only the adapter moves")
@every_kind
def test_a_step_of_training_moves_every_tensor_of_the_adapter_and_nothing_else(kind):
    model = adapted(kind, aux_loss_coef=0.1)
    before = copies(model)
    gradients(model)
    torch.optim.AdamW(model.parameters(), lr=1e-2).step()
    moved = {name for name, value in copies(model).items() if not value.equal(before[name])}
    assert moved == set(trainable(model))
    assert len(moved) == 4 * 3 and all("alphalora_" in name for name in moved)


@pytest.mark.works("PEFT", "any nn.Module", "no task type, no config")
def test_a_module_without_labels_gets_the_gradient_of_the_load_balancing_loss():
    plain = adapted("custom", aux_loss_coef=0.0)
    with router_inputs(plain) as seen:
        _, loss = forward(plain)
    everything = torch.ones(2, 5)
    for layer, x in seen:
        routers = sum(block_name(n) == block_name(layer.module_name) for n in layers(plain))
        router = layer.alphalora_router["default"]
        share = reference.load_balancing(x, router, top_k=2, mask=everything) / routers
        loss = loss + 0.3 * share
    loss.backward()
    got = gradients(adapted("custom", aux_loss_coef=0.3))
    for name, parameter in trainable(plain).items():
        assert_same(got[name], parameter.grad, atol=1e-5)
    without = gradients(adapted("custom", aux_loss_coef=0.0))
    assert not all(torch.allclose(got[name], without[name], atol=1e-4) for name in got)


class WithLabels(Mlp):
    def forward(self, x, labels):
        return None, super().forward(x)


@pytest.mark.works("PEFT", "any nn.Module", "no task type, no config")
def test_a_module_that_takes_labels_need_not_give_a_loss():
    model = get_peft_model(WithLabels(), config("custom")).train()
    nothing, out = model(X, labels=torch.zeros(2, 5))
    out.square().mean().backward()
    assert nothing is None and all(p.grad.any() for p in trainable(model).values())


@pytest.mark.works("PEFT", "gradient checkpointing", "reentrant and not")
@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_gradients_do_not_depend_on_checkpointing(kind, reentrant):
    expected = gradients(adapted(kind, aux_loss_coef=0.1))
    model = adapted(kind, aux_loss_coef=0.1)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    runs = []
    for layer in layers(model).values():
        layer.register_forward_hook(lambda layer, *_: runs.append(layer.module_name))
    got = gradients(model)
    assert len(runs) > len(set(runs)), "the layers must be recomputed"
    assert got.keys() == expected.keys() and all(g.any() for g in got.values())
    for name in got:
        assert_same(got[name], expected[name], atol=1e-5)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.works("PEFT", "prepare_model_for_kbit_training")
@pytest.mark.parametrize("kind", QUANTISED)
def test_a_base_prepared_for_kbit_training_gives_the_same_gradients(kind):
    expected = gradients(adapted(kind))
    base = prepare_model_for_kbit_training(fresh(kind))
    assert base.is_gradient_checkpointing
    torch.manual_seed(3)
    got = gradients(get_peft_model(base, config(kind)))
    assert got.keys() == expected.keys()
    for name in expected:
        assert_same(got[name], expected[name], atol=1e-5)


@pytest.mark.works("PEFT", "generation", "with and without a cache")
@pytest.mark.parametrize("kind", DECODERS)
def test_greedy_generation_is_the_same_with_and_without_a_cache(kind):
    model = adapted(kind, num_experts=4, top_k=1).eval()

    def generate(**options):
        return model.generate(
            input_ids=IDS,
            max_new_tokens=5,
            min_new_tokens=5,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )

    cached, whole = generate(use_cache=True), generate(use_cache=False)
    assert torch.equal(cached.sequences, whole.sequences)
    assert_same(torch.stack(cached.logits), torch.stack(whole.logits), atol=1e-4)
    with model.disable_adapter():
        assert not torch.allclose(generate().logits[0], whole.logits[0])
    assert_same(whole.logits[0], outputs(model)[:, -1], atol=1e-4)


@pytest.mark.works("PEFT", "status and parameter counts")
@every_kind
def test_the_status_and_the_counts_are_those_of_the_adapter(kind, capsys):
    base = fresh(kind)
    packed = {id(p): 2 for p in base.parameters() if type(p).__name__ == "Params4bit"}
    size = sum(p.numel() * packed.get(id(p), 1) for p in base.parameters())
    model = get_peft_model(base, config(kind))
    experts = sum(
        3 * 4 * (layer.in_features + layer.out_features) + 3 * layer.in_features
        for layer in layers(model).values()
    )
    assert model.get_nb_trainable_parameters() == (experts, size + experts)
    model.print_trainable_parameters()
    shown = capsys.readouterr().out
    assert f"trainable params: {experts:,} || all params: {size + experts:,}" in shown
    status = model.get_model_status()
    assert (status.trainable_params, status.num_adapter_layers) == (experts, 4)
    assert status.enabled is True and status.requires_grad == {"default": True}
    assert status.active_adapters == status.available_adapters == ["default"]
    assert (status.quantization_backend, status.merged_adapters) == (KINDS[kind].backend, [])
    assert status.peft_types == {"default": "ALPHALORA"}
    with model.disable_adapter():
        assert {each.enabled for each in model.get_layer_status()} == {False}
