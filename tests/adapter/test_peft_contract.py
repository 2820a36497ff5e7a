"""What PEFT promises of every method, for each kind of linear layer that can carry experts.

The kinds are defined here; `test_peft_contract_training` and `_adapters` use them too.
"""

import copy
import functools
import json
import tempfile
from dataclasses import dataclass

import bitsandbytes as bnb
import pytest
import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors import safe_open
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    TorchAoConfig,
)

from axolotl_alphalora.adapter import AlphaLoraConfig, AlphaLoraLayer
from helpers import reference
from helpers.models import tiny_llama_config

IDS = torch.tensor([[5, 6, 7, 8, 9, 3], [4, 3, 2, 1, 11, 12]])
X = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(2))


class Mlp(nn.Module):
    """A module that knows nothing of transformers: no config, no labels, a tensor comes out."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(64, 96), "down": nn.Linear(96, 64)}) for _ in range(2)
        )
        self.head = nn.Linear(64, 7)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer["down"](torch.relu(layer["up"](x)))
        return self.head(x)


@dataclass(frozen=True)
class Kind:
    """A kind of linear layer, in a model of two blocks."""

    targets: tuple[str, str] = ("q_proj", "down_proj")
    blocks: str = "layers"
    head: str = "lm_head"
    task: str | None = "CAUSAL_LM"
    backend: str | None = None


KINDS = {
    "linear": Kind(),
    "conv1d": Kind(("c_attn", "c_fc"), blocks="h"),
    "custom": Kind(("up", "down"), head="head", task=None),
    "4-bit": Kind(backend="bnb 4bit"),
    "8-bit": Kind(backend="bnb 8bit"),
    "torchao": Kind(backend="torchao"),
}
QUANTISED = ["4-bit", "8-bit", "torchao"]
DECODERS = ["linear", "conv1d", *QUANTISED]
every_kind = pytest.mark.parametrize("kind", KINDS)


def quantisation(kind, dtype):
    if kind == "torchao":
        return TorchAoConfig(Int8WeightOnlyConfig(version=2))
    if kind == "8-bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


@functools.cache
def built(kind, dtype):
    torch.manual_seed(0)
    if kind == "custom":
        return Mlp().to(dtype).eval()
    if kind == "conv1d":
        shape = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 97, "n_positions": 64}
        quiet = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        shape = GPT2Config(**shape, **quiet, bos_token_id=96, eos_token_id=96)
        return GPT2LMHeadModel(shape).to(dtype).eval()
    model = LlamaForCausalLM(tiny_llama_config())
    if kind == "linear":
        return model.to(dtype).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, quantization_config=quantisation(kind, dtype)
        )
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # Some CPUs repack it in an eval forward, and round it when it is then saved.
            module.support_avx512bf16_for_cpu = False
    return model.eval()


def fresh(kind, dtype=torch.float32):
    """A copy of its own of the base model."""
    return copy.deepcopy(built(kind, dtype))


def config(kind, **changes):
    settings = {
        "r": 4,
        "num_experts": 3,
        "target_modules": list(KINDS[kind].targets),
        "init_weights": False,
        "task_type": KINDS[kind].task,
    }
    return AlphaLoraConfig(**(settings | changes))


def adapted(kind, seed=3, **changes):
    base = fresh(kind)
    torch.manual_seed(seed)
    return get_peft_model(base, config(kind, **changes))


def layers(model):
    return {m.module_name: m for m in model.modules() if isinstance(m, AlphaLoraLayer)}


def forward(model):
    """Output and loss of either sort of model, always for the same input."""
    if any(isinstance(m, Mlp) for m in model.modules()):
        out = model(X.to(next(model.parameters()).dtype))
        return out, out.float().square().mean()
    out = model(input_ids=IDS, labels=IDS)
    return out.logits, out.loss


@torch.no_grad()
def outputs(model):
    return forward(model.eval())[0]


def trainable(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def move(model):
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.1)


def assert_same(got, want, atol=0.0):
    torch.testing.assert_close(got, want, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("linear", marks=pytest.mark.works("PEFT", "nn.Linear")),
        pytest.param("conv1d", marks=pytest.mark.works("PEFT", "transformers' Conv1D")),
        pytest.param(
            "custom", marks=pytest.mark.works("PEFT", "any nn.Module", "no task type, no config")
        ),
        pytest.param(
            "4-bit", marks=pytest.mark.works("Quantised bases", "bitsandbytes 4-bit (nf4)")
        ),
        pytest.param("8-bit", marks=pytest.mark.works("Quantised bases", "bitsandbytes 8-bit")),
        pytest.param(
            "torchao", marks=pytest.mark.works("Quantised bases", "torchao int8 weight-only")
        ),
    ],
)
def test_a_new_adapter_is_the_identity_and_a_moved_one_adds_its_experts(kind):
    before = outputs(fresh(kind))
    assert_same(outputs(adapted(kind, init_weights=True)), before)
    model = adapted(kind)
    seen = {}
    for name, layer in layers(model).items():
        layer.register_forward_hook(
            lambda layer, args, out, name=name: seen.update({name: (layer, args[0], out)})
        )
    after = outputs(model)
    assert not torch.allclose(after, before)
    assert len(seen) == 4
    for layer, x, out in seen.values():
        a, b, router = (getattr(layer, p)["default"] for p in layer.adapter_layer_names)
        with torch.no_grad():
            added = reference.expert_mixture(
                x, a, b, router, num_experts=3, rank=4, top_k=2, scaling=4.0
            )
            assert_same(out, layer.base_layer(x) + added, atol=1e-4)
    assert_same(outputs(model), after)


@pytest.mark.works("PEFT", "disable_adapter, unload")
@every_kind
def test_disabling_and_unloading_give_back_the_base_to_the_bit(kind):
    base = fresh(kind)
    before = outputs(base)
    keys, types = list(base.state_dict()), [type(m) for m in base.modules()]
    model = get_peft_model(base, config(kind))
    after = outputs(model)
    assert not torch.allclose(after, before)
    with model.disable_adapter():
        assert_same(outputs(model), before)
    assert_same(outputs(model), after)
    bare = model.unload()
    assert_same(outputs(bare), before)
    assert list(bare.state_dict()) == keys
    assert [type(m) for m in bare.modules()] == types
    assert not bare._forward_hooks and not bare._forward_pre_hooks


@pytest.mark.works("PEFT", "save and load", "safetensors, low_cpu_mem_usage, modules_to_save")
@every_kind
def test_a_saved_adapter_comes_back(kind, tmp_path):
    model = adapted(kind, modules_to_save=[KINDS[kind].head], lora_dropout=0.1)
    move(model)
    expected = outputs(model)
    with model.disable_adapter():
        assert_same(outputs(model), outputs(fresh(kind)))
    model.save_pretrained(tmp_path)
    files = {f.name for f in tmp_path.iterdir()}
    assert files == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        keys = set(file.keys())
    assert keys == set(get_peft_model_state_dict(model))
    assert all("alphalora_" in key or f".{KINDS[kind].head}." in key for key in keys)
    saved = json.loads((tmp_path / "adapter_config.json").read_text(), parse_constant=pytest.fail)
    assert saved["peft_type"] == "ALPHALORA" and set(saved["num_experts"]) == set(layers(model))
    assert isinstance(PeftConfig.from_pretrained(tmp_path), AlphaLoraConfig)
    for options in ({}, {"low_cpu_mem_usage": True}, {"is_trainable": True}):
        loaded = PeftModel.from_pretrained(fresh(kind), tmp_path, **options)
        assert_same(outputs(loaded), expected)
        assert not any(p.is_meta for p in loaded.parameters())
        wanted = set(trainable(model)) if options.get("is_trainable") else set()
        assert set(trainable(loaded)) == wanted


@pytest.mark.works("PEFT", "several adapters", "added, loaded beside, switched, deleted")
@every_kind
def test_adapters_of_other_counts_do_not_touch_each_other(kind, tmp_path):
    first, second = adapted(kind), adapted(kind, seed=4, num_experts=5, r=2, top_k=1)
    wanted = {"default": outputs(first), "other": outputs(second)}
    second.save_pretrained(tmp_path)
    first.load_adapter(tmp_path, "other", low_cpu_mem_usage=True)
    first.add_adapter("unused", config(kind, num_experts=1))
    for name in ("default", "other", "default"):
        first.set_adapter(name)
        assert_same(outputs(first), wanted[name])
        assert all(n.endswith(f".{name}") for n in trainable(first)) and trainable(first)
    first.delete_adapter("unused")
    first.set_adapter("other")
    first.delete_adapter("default")
    assert_same(outputs(first), wanted["other"])
    assert not [n for n in first.state_dict() if n.endswith((".default", ".unused"))]


@pytest.mark.refused("PEFT", "merging")
@every_kind
def test_merging_is_refused_and_leaves_the_model_alone(kind):
    model = adapted(kind)
    before = outputs(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        for options in ({}, {"safe_merge": True}, {"adapter_names": ["default"]}):
            with pytest.raises(ValueError, match="cannot be merged into the base weights"):
                merge(**options)
    for layer in layers(model).values():
        with pytest.raises(NotImplementedError, match="cannot be merged into the base weights"):
            layer.merge()
        assert not layer.merged
    model.unmerge_adapter()
    assert_same(outputs(model), before)


@pytest.mark.works("PEFT", "inject_adapter_in_model, get/set_peft_model_state_dict")
@every_kind
def test_an_adapter_injected_without_a_peft_model_is_the_same_one(kind):
    model = adapted(kind)
    state = get_peft_model_state_dict(model)
    assert not any("default" in key for key in state)
    bare = inject_adapter_in_model(config(kind), fresh(kind), "other")
    assert not torch.allclose(outputs(bare), outputs(model))
    result = set_peft_model_state_dict(bare, state, "other")
    assert not result.unexpected_keys
    assert_same(outputs(bare), outputs(model))
    back = get_peft_model_state_dict(bare, adapter_name="other")
    assert {f"base_model.model.{key}" for key in back} == set(state)


@pytest.mark.works("PEFT", "layers_to_transform, exclude_modules")
@every_kind
def test_blocks_and_modules_can_be_left_out(kind):
    up, down = KINDS[kind].targets
    blocks = {"layers_to_transform": [1], "layers_pattern": KINDS[kind].blocks}
    names = list(layers(adapted(kind, **blocks)))
    assert len(names) == 2 and all(f"{KINDS[kind].blocks}.1." in name for name in names)
    names = list(layers(adapted(kind, **blocks, target_modules="all-linear")))
    assert names and all(f"{KINDS[kind].blocks}.1." in name for name in names)
    names = list(layers(adapted(kind, exclude_modules=[up])))
    assert len(names) == 2 and all(name.endswith(down) for name in names)
    every = layers(adapted(kind, target_modules="all-linear", exclude_modules=rf".*\.0\..*{up}"))
    assert [name for name in every if name.endswith(up)] == [
        name for name in layers(adapted(kind)) if name.endswith(up) and ".1." in name
    ]
    assert sum(name.endswith(down) for name in every) == 2


@pytest.mark.works("PEFT", "deepcopy")
@every_kind
def test_a_deep_copy_is_a_model_of_its_own(kind):
    model = adapted(kind)
    before = outputs(model)
    twin = copy.deepcopy(model)
    assert_same(outputs(twin), before)
    move(twin)
    assert_same(outputs(model), before)
    assert not torch.allclose(outputs(twin), before)
    twin.add_adapter("other", config(kind))
    assert len(twin.get_base_model()._forward_hooks) == 1
    bare = twin.unload()
    assert not bare._forward_hooks and model.get_base_model()._forward_hooks
