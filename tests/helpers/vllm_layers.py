"""Stand-ins for vLLM's linear layers and for its model: names and division as in vLLM 0.32."""

import json

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from axolotl_alphalora.mixture import Mixture
from axolotl_alphalora.vllm.layers import Kinds, attach, find_places
from axolotl_alphalora.vllm.saved import open_weights, read_adapter
from helpers.reference import expert_mixture


class Plain:
    """A quantisation method that quantises nothing."""

    def apply(self, layer, x, bias=None):
        return nn.functional.linear(x, layer.weight, bias)


class LinearBase(nn.Module):
    def __init__(self, weight, sizes=None, tp_rank=0, tp_size=1):
        super().__init__()
        self.output_size, self.input_size = weight.shape
        if sizes is not None:
            self.output_sizes = list(sizes)
        self.tp_rank, self.tp_size = tp_rank, tp_size
        self.quant_method = Plain()
        self.register_buffer("weight", self.own(weight).clone())

    def own(self, weight):
        return weight

    def forward(self, x):
        return self.quant_method.apply(self, x), None


class ReplicatedLinear(LinearBase):
    def forward(self, x):
        return self.quant_method.apply(self, x), None


class ColumnParallelLinear(LinearBase):
    def own(self, weight):
        whole = getattr(self, "output_sizes", [self.output_size])
        self.output_partition_sizes = [size // self.tp_size for size in whole]
        parts = weight.split(list(whole))
        return torch.cat([part.chunk(self.tp_size)[self.tp_rank] for part in parts])

    def forward(self, x):
        return self.quant_method.apply(self, x), None


class MergedColumnParallelLinear(ColumnParallelLinear):
    pass


class QKVParallelLinear(ColumnParallelLinear):
    """With fewer heads of keys and values than processes, several processes have the same."""

    def __init__(self, weight, sizes, copies=1, **kwargs):
        self.num_kv_head_replicas = copies
        super().__init__(weight, sizes, **kwargs)

    def own(self, weight):
        copies = [1, self.num_kv_head_replicas, self.num_kv_head_replicas]
        whole = self.output_sizes
        self.output_partition_sizes = [
            n * copy // self.tp_size for n, copy in zip(whole, copies, strict=True)
        ]
        self.output_sizes = [n * copy for n, copy in zip(whole, copies, strict=True)]
        self.output_size = sum(self.output_sizes)
        return torch.cat(
            [
                part.chunk(self.tp_size // copy)[self.tp_rank // copy]
                for part, copy in zip(weight.split(list(whole)), copies, strict=True)
            ]
        )


class RowParallelLinear(LinearBase):
    """`reduce` is the sum over processes."""

    reduce = None

    def own(self, weight):
        return weight.chunk(self.tp_size, 1)[self.tp_rank]

    def forward(self, x):
        out = self.quant_method.apply(self, x)
        return (out if self.reduce is None else self.reduce(out)), None


KINDS = Kinds(
    LinearBase,
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
    ReplicatedLinear,
)

PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
SIZES = {
    "self_attn.q_proj": (24, 16),
    "self_attn.k_proj": (8, 16),
    "self_attn.v_proj": (8, 16),
    "self_attn.o_proj": (16, 24),
    "mlp.gate_proj": (20, 16),
    "mlp.up_proj": (20, 16),
    "mlp.down_proj": (16, 20),
}
"""Outputs and inputs of a block's linear layers."""


def modules(blocks=1):
    """Name in the base to size, of all linear layers."""
    return {f"model.layers.{i}.{name}": size for i in range(blocks) for name, size in SIZES.items()}


def weights(blocks=1):
    """Random weights of the base's linear layers, the same each time."""
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(size, generator=generator) for n, size in modules(blocks).items()}


class Model(nn.Module):
    """As vLLM writes a Llama: `qkv_proj`, `o_proj`, `gate_up_proj`, `down_proj` in each block."""

    packed_modules_mapping = PACKED

    def __init__(self, base, blocks=1, kv_copies=1, **world):
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(nn.Module() for _ in range(blocks))
        for i, block in enumerate(self.model.layers):
            block.self_attn, block.mlp = nn.Module(), nn.Module()

            def of(*names, i=i):
                found = [base[f"model.layers.{i}.{name}"] for name in names]
                return torch.cat(found), [len(each) for each in found]

            qkv = of("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
            block.self_attn.qkv_proj = QKVParallelLinear(*qkv, copies=kv_copies, **world)
            block.self_attn.o_proj = RowParallelLinear(of("self_attn.o_proj")[0], **world)
            block.mlp.gate_up_proj = MergedColumnParallelLinear(
                *of("mlp.gate_proj", "mlp.up_proj"), **world
            )
            block.mlp.down_proj = RowParallelLinear(of("mlp.down_proj")[0], **world)


def save_adapter(folder, planned, ranks=None, mixture=None, **changes):
    """Write an adapter with random weights; returns its tensors by module."""
    mixture, ranks = mixture or Mixture(), ranks or {}
    sizes = modules(1 + max(int(name.split(".")[2]) for name in planned))
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, count in planned.items():
        out, into = sizes[name]
        shapes = mixture.tensors(into, out, count, ranks.get(name, 4))
        tensors[name] = {
            part: torch.randn(shape, generator=generator) for part, shape in shapes.items()
        }
    folder.mkdir(exist_ok=True)
    settings = {
        "peft_type": "ALPHALORA",
        "base_model_name_or_path": "base",
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": False,
        "num_experts": planned,
        "rank_pattern": ranks,
        "top_k": mixture.top_k,
        "segments": mixture.segments,
        "router_rank": mixture.router_rank,
        "share_a": mixture.share_a,
        "needs_version": "0.1.0",
    } | changes
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    flat = {
        f"base_model.model.{name}.{part}": tensor
        for name, parts in tensors.items()
        for part, tensor in parts.items()
    }
    save_file(flat, folder / "adapter_model.safetensors")
    return tensors


def added(x, tensors, planned, rank, mixture, lora_alpha=8):
    """What a module's experts add to its output, one token and one expert after the other."""
    if not planned:
        return 0
    return expert_mixture(
        x,
        tensors["alphalora_A"],
        tensors["alphalora_B"],
        tensors.get("alphalora_router"),
        tensors.get("alphalora_router_down"),
        num_experts=mixture.experts(planned),
        rank=rank // mixture.segments,
        top_k=mixture.active(planned),
        scaling=mixture.segments * lora_alpha / rank,
    )


def put(model, folder, reduce=None, dtype=torch.float32):
    """Give a model the experts of an adapter; the places."""
    adapter = read_adapter(folder)
    with open_weights(adapter) as weights:
        places = find_places(model, adapter, weights, KINDS)
        attach(places, adapter, weights, dtype, torch.device("cpu"), reduce)
    return places


def rename(folder, one, other):
    """Change names in both files of an adapter."""
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    config.write_text(config.read_text().replace(one, other))
    save_file(
        {key.replace(one, other): value for key, value in load_file(weights).items()}, weights
    )
