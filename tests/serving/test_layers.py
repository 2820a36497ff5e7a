"""Where an adapter's modules are in vLLM's model, on stand-ins for its layers."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from axolotl_alphalora.mixture import Mixture
from helpers import vllm_layers
from helpers.vllm_layers import Model, added, modules, put, rename, save_adapter
from helpers.worlds import in_a_world

PLANS = {
    "alike": {name: 3 for name in modules()},
    "unlike": {name: i for i, name in enumerate(modules())},
    "one expert": {name: 1 for name in modules()},
    "deep": {name: 2 + int(name.split(".")[2]) for name in modules(2)},
}
MIXTURES = [
    Mixture(),
    Mixture(1),
    Mixture(0.5, 2, None, False),
    Mixture(2, 2, 3, True),
    Mixture(2, 1, 3, False),
    Mixture(2, 4, None, True),
]
LAYERS = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}


def wanted(base, tensors, planned, mixture, block=0, ranks=None):
    """Layer to its input and the outputs of the modules in it, by the plain loop."""
    generator, ranks = torch.Generator().manual_seed(5), ranks or {}
    found = {}
    for layer, parts in LAYERS.items():
        names = [f"model.layers.{block}.{part}" for part in parts]
        x = torch.randn(5, base[names[0]].shape[1], generator=generator)
        found[layer] = (
            x,
            [
                nn.functional.linear(x, base[n])
                + added(x, tensors.get(n), planned.get(n, 0), ranks.get(n, 4), mixture)
                for n in names
            ],
        )
    return found


@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
@pytest.mark.parametrize("plan", PLANS)
def test_every_projection_gets_its_own_experts(tmp_path, plan, mixture):
    planned, blocks = PLANS[plan], 2 if plan == "deep" else 1
    tensors, base = save_adapter(tmp_path, planned, mixture=mixture), vllm_layers.weights(blocks)
    model = Model(base, blocks)
    put(model, tmp_path)
    for i in range(blocks):
        for layer, (x, outs) in wanted(base, tensors, planned, mixture, i).items():
            got = model.get_submodule(f"model.layers.{i}.{layer}")(x)[0]
            torch.testing.assert_close(got, torch.cat(outs, -1), rtol=1e-5, atol=1e-3)


def test_ranks_of_modules_and_their_scales_are_followed(tmp_path):
    planned = {name: 2 for name in modules()}
    ranks = {name: 2 + 2 * (i % 3) for i, name in enumerate(modules())}
    tensors, base = save_adapter(tmp_path, planned, ranks), vllm_layers.weights()
    put(model := Model(base), tmp_path)
    for layer, (x, outs) in wanted(base, tensors, planned, Mixture(), ranks=ranks).items():
        got = model.get_submodule(f"model.layers.0.{layer}")(x)[0]
        torch.testing.assert_close(got, torch.cat(outs, -1), rtol=1e-5, atol=1e-3)


def test_the_ranks_root_is_followed(tmp_path):
    planned = {"model.layers.0.mlp.down_proj": 1}
    tensors, base = save_adapter(tmp_path, planned, use_rslora=True), vllm_layers.weights()
    put(model := Model(base), tmp_path)
    x, (name, own) = torch.randn(3, 20), *tensors.items()
    want = x @ base[name].T + 8 / 4**0.5 * (x @ own["alphalora_A"].T @ own["alphalora_B"].T)
    torch.testing.assert_close(model.model.layers[0].mlp.down_proj(x)[0], want)


def test_layers_without_experts_are_left_alone(tmp_path):
    save_adapter(tmp_path, {"model.layers.0.self_attn.k_proj": 2})
    put(model := Model(vllm_layers.weights(2), 2), tmp_path)
    touched = [n for n, m in model.named_modules() if any(True for _ in m.buffers(recurse=False))]
    routed = [n for n in touched if hasattr(model.get_submodule(n), "alphalora_down")]
    assert routed == ["model.layers.0.self_attn.qkv_proj"]
    untouched = model.model.layers[0].mlp.down_proj
    assert type(untouched.quant_method) is vllm_layers.Plain
    assert "alphalora_down" not in model.model.layers[0].self_attn.qkv_proj.state_dict()


def test_a_projection_that_the_base_itself_fuses_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(Model, "packed_modules_mapping", {"gate_up_proj": ["gate_up_proj"]})
    monkeypatch.setitem(vllm_layers.SIZES, "mlp.gate_up_proj", (40, 16))
    name = "model.layers.0.mlp.gate_up_proj"
    base, tensors = vllm_layers.weights(), save_adapter(tmp_path, {name: 3})
    x = torch.randn(4, 16)
    joined = torch.cat([base[f"model.layers.0.mlp.{n}_proj"] for n in ("gate", "up")])
    want = x @ joined.T + added(x, tensors[name], 3, 4, Mixture())
    put(model := Model(base), tmp_path)
    torch.testing.assert_close(model.model.layers[0].mlp.gate_up_proj(x)[0], want)
    # Divided, each process has a part of either half.
    gates, ups = want.split(20, -1)
    for rank in (0, 1):
        put(model := Model(base, tp_rank=rank, tp_size=2), tmp_path)
        part = torch.cat([half.chunk(2, -1)[rank] for half in (gates, ups)], -1)
        torch.testing.assert_close(model.model.layers[0].mlp.gate_up_proj(x)[0], part)


class Renames:
    """As vLLM's mapper of weight names: what is fused is in the names, unless asked otherwise."""

    def get_rename_mapper(self):
        return self.Plain()

    def map_name(self, name):
        return name.replace(".q_proj", ".qkv_proj")

    class Plain:
        def map_name(self, name):
            return name.replace("model.language_model.", "language_model.model.")


def test_names_that_vllm_changes_are_found(tmp_path):
    save_adapter(tmp_path, {name: 2 for name in modules()})
    rename(tmp_path, "model.layers", "model.language_model.layers")
    whole = nn.Module()
    whole.language_model = Model(vllm_layers.weights())
    whole.packed_modules_mapping = vllm_layers.PACKED
    whole.hf_to_vllm_mapper = Renames()
    assert len(put(whole, tmp_path)) == 4


# Tensor parallelism.


def own_part(outs, rank, copies=1):
    """What a process of two has of a column-parallel layer's outputs."""
    parts = [outs[0].chunk(2, -1)[rank]]
    parts += [out.chunk(2 // copies, -1)[rank // copies] for out in outs[1:]]
    return torch.cat(parts, -1)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
@pytest.mark.parametrize("plan", ["alike", "unlike"])
def test_column_parallel_layers_have_their_rows(tmp_path, plan, mixture, copies):
    planned, base = PLANS[plan], vllm_layers.weights()
    tensors = save_adapter(tmp_path, planned, mixture=mixture)
    found = wanted(base, tensors, planned, mixture)
    for rank in (0, 1):
        model = Model(base, kv_copies=copies, tp_rank=rank, tp_size=2)
        put(model, tmp_path)
        for layer in ("self_attn.qkv_proj", "mlp.gate_up_proj"):
            x, outs = found[layer]
            got = model.get_submodule(f"model.layers.0.{layer}")(x)[0]
            want = own_part(outs, rank, copies if "qkv" in layer else 1)
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-3)


def all_reduce(tensor):
    dist.all_reduce(tensor := tensor.clone())
    return tensor


@pytest.mark.works(
    "Serving", "tensor parallelism, on stand-ins for vLLM's layers", "two gloo processes"
)
@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
@pytest.mark.parametrize("plan", ["alike", "one expert"])
def test_row_parallel_layers_agree_on_their_gates(tmp_path, plan, mixture):
    """Two gloo processes, each with half of the input features."""
    planned, base = PLANS[plan], vllm_layers.weights()
    tensors = save_adapter(tmp_path / "adapter", planned, mixture=mixture)
    found = wanted(base, tensors, planned, mixture)

    def work():
        rank = dist.get_rank()
        model = Model(base, tp_rank=rank, tp_size=2)
        put(model, tmp_path / "adapter", all_reduce)
        for layer in ("self_attn.o_proj", "mlp.down_proj"):
            x, (want,) = found[layer]
            part = model.get_submodule(f"model.layers.0.{layer}")
            part.reduce = all_reduce
            got = part(x.chunk(2, -1)[rank].contiguous())[0]
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-3)

    error = tmp_path / "error"
    assert in_a_world(2, tmp_path / "store", work, error) == [0, 0], error.read_text()


def test_a_layer_that_is_on_every_process_is_whole_there(tmp_path):
    name = "model.layers.0.self_attn.o_proj"
    tensors, base = save_adapter(tmp_path, {name: 2}), vllm_layers.weights()
    model = Model(base, tp_rank=1, tp_size=2)
    model.model.layers[0].self_attn.o_proj = vllm_layers.ReplicatedLinear(
        base[name], tp_rank=1, tp_size=2
    )
    put(model, tmp_path)
    x = torch.randn(4, 24)
    want = x @ base[name].T + added(x, tensors[name], 2, 4, Mixture())
    torch.testing.assert_close(model.model.layers[0].self_attn.o_proj(x)[0], want)
