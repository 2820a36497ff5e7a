"""What of an adapter vLLM's model has no right place for is refused by name."""

import copy
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from axolotl_alphalora.vllm.layers import find_places
from axolotl_alphalora.vllm.saved import open_weights, read_adapter
from helpers import vllm_layers
from helpers.vllm_layers import KINDS, Model, modules, put, rename, save_adapter

ALIKE = {name: 3 for name in modules()}


class OwnForward(vllm_layers.ColumnParallelLinear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight), None


class OwnDivision(vllm_layers.RowParallelLinear):
    pass


def refused(model, folder, *words, mla=False):
    adapter = read_adapter(folder)
    before = copy.deepcopy(model.state_dict())
    with open_weights(adapter) as weights, pytest.raises(ValueError) as caught:
        find_places(model, adapter, weights, KINDS, mla)
    for word in words:
        assert re.search(word, str(caught.value)), str(caught.value)
    assert model.state_dict().keys() == before.keys()


def test_modules_that_were_not_placed_are_named(tmp_path):
    planned = {name: 2 for name in modules(2)}
    save_adapter(tmp_path, planned)
    refused(
        Model(vllm_layers.weights()), tmp_path, "7 of the adapter's modules", "layers.1.mlp.down"
    )


@pytest.mark.refused("Serving", "a base's own fused experts, `lm_head`")
@pytest.mark.parametrize(
    ("name", "why"),
    [("model.layers.0.mlp.experts.0.up_proj", "one fused layer"), ("lm_head", "no linear layer")],
)
def test_why_a_module_has_no_place_is_said(tmp_path, name, why):
    save_adapter(tmp_path, {"model.layers.0.mlp.up_proj": 2})
    rename(tmp_path, "model.layers.0.mlp.up_proj", name)
    refused(Model(vllm_layers.weights()), tmp_path, re.escape(name), why)


@pytest.mark.refused("Serving", "a base of other shapes")
def test_a_base_of_other_shapes_is_refused(tmp_path, monkeypatch):
    save_adapter(tmp_path, ALIKE)
    monkeypatch.setitem(vllm_layers.SIZES, "mlp.gate_proj", (22, 16))
    refused(Model(vllm_layers.weights()), tmp_path, "gate_proj", r"alphalora_B is \[20, 12\]", "22")


def test_a_base_with_other_heads_is_refused_where_it_is_divided_too(tmp_path, monkeypatch):
    save_adapter(tmp_path, {"model.layers.0.self_attn.v_proj": 2})
    monkeypatch.setitem(vllm_layers.SIZES, "self_attn.v_proj", (4, 16))
    refused(Model(vllm_layers.weights(), tp_rank=0, tp_size=2), tmp_path, r"v_proj.*\[8, 8\]")


def test_a_base_of_another_depth_is_refused(tmp_path):
    save_adapter(tmp_path, ALIKE, base_blocks={"model.layers": 1})
    refused(Model(vllm_layers.weights(2), 2), tmp_path, "1 blocks in model.layers", "has 2")


@pytest.mark.refused("Serving", "layers that may go around their `quant_method`")
def test_a_layer_that_may_go_around_its_method_is_refused(tmp_path):
    save_adapter(tmp_path, ALIKE)
    model, base = Model(vllm_layers.weights()), vllm_layers.weights()
    model.model.layers[0].mlp.down_proj = OwnForward(base["model.layers.0.mlp.down_proj"])
    refused(model, tmp_path, "down_proj is a OwnForward", "quant_method")


def test_weights_that_attention_reads_by_itself_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(vllm_layers.SIZES, "self_attn.kv_b_proj", (16, 16))
    save_adapter(tmp_path, {"model.layers.0.self_attn.kv_b_proj": 2})
    model = Model(vllm_layers.weights())
    model.model.layers[0].self_attn.kv_b_proj = vllm_layers.ColumnParallelLinear(torch.ones(16, 16))
    refused(model, tmp_path, "kv_b_proj", "without calling it", mla=True)
    put(model, tmp_path)  # without such attention it is a layer like any other


@pytest.mark.refused("Serving", "rows that vLLM reorders: Bloom, Falcon, queries of Llama 4")
def test_rows_that_vllm_may_reorder_are_refused(tmp_path, monkeypatch):
    save_adapter(tmp_path, {"model.layers.0.self_attn.v_proj": 2})
    model = Model(vllm_layers.weights())
    model.permute_qk_weight_for_rotary = lambda name, weight: (name, weight)
    put(model, tmp_path)  # of values it does not
    save_adapter(tmp_path, {"model.layers.0.self_attn.k_proj": 2})
    refused(model, tmp_path, "qkv_proj: .*k_proj in another order", "transformers")
    whole = "model.layers.0.self_attn.query_key_value"
    monkeypatch.setattr(Model, "packed_modules_mapping", {})
    monkeypatch.setitem(vllm_layers.SIZES, "self_attn.query_key_value", (40, 16))
    save_adapter(tmp_path, {whole: 2})
    model = Model(vllm_layers.weights())
    attention = model.model.layers[0].self_attn
    attention.query_key_value = vllm_layers.QKVParallelLinear(torch.ones(40, 16), [24, 8, 8])
    refused(model, tmp_path, "query_key_value in another order")


class Runner(nn.Module):
    """As vLLM's of fused experts, which holds the gates."""

    def __init__(self, gate, shared_expert_gate, fuses):
        super().__init__()
        self.gate, self.shared_expert_gate, self._fse_fuse_gate = gate, shared_expert_gate, fuses


@pytest.mark.parametrize("name", ["gate", "shared_expert_gate"])
def test_gates_whose_weights_become_one_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.setitem(vllm_layers.SIZES, f"mlp.{name}", (3, 16))
    save_adapter(tmp_path, {f"model.layers.0.mlp.{name}": 2})
    model = Model(vllm_layers.weights())
    mlp = model.model.layers[0].mlp
    mlp.gate, mlp.shared_expert_gate = (
        vllm_layers.ReplicatedLinear(torch.ones(3, 16)) for _ in range(2)
    )
    mlp.experts = Runner(mlp.gate, mlp.shared_expert_gate, True)
    refused(model, tmp_path, f"mlp.{name}: .*without calling it")
    mlp.experts._fse_fuse_gate = False
    put(model, tmp_path)


def test_a_layer_that_is_divided_otherwise_is_refused_only_where_it_is(tmp_path):
    save_adapter(tmp_path, {"model.layers.0.mlp.down_proj": 2})
    base = vllm_layers.weights()
    for size in (2, 1):
        model = Model(base, tp_size=size)
        model.model.layers[0].mlp.down_proj = OwnDivision(
            base["model.layers.0.mlp.down_proj"], tp_size=size
        )
        if size == 2:
            refused(model, tmp_path, "OwnDivision", "tensor-parallel-size 1")
    put(model, tmp_path)


def test_parts_that_are_not_the_modules_are_refused(tmp_path, monkeypatch):
    save_adapter(tmp_path, ALIKE)
    monkeypatch.setattr(Model, "packed_modules_mapping", {"qkv_proj": ["q_proj", "k_proj"]})
    refused(Model(vllm_layers.weights()), tmp_path, "qkv_proj", "2 modules", "3 parts")


def test_a_missing_tensor_is_named(tmp_path):
    save_adapter(tmp_path, ALIKE)
    path = tmp_path / "adapter_model.safetensors"
    kept = load_file(path)
    del kept["base_model.model.model.layers.0.mlp.up_proj.alphalora_router"]
    save_file(kept, path)
    refused(Model(vllm_layers.weights()), tmp_path, "up_proj", "lack alphalora_router")
