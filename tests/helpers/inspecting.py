"""Saved adapters of random experts, and what their routers are said to have decided."""

import json
import math

import torch
from safetensors.torch import save_file

from axolotl_alphalora.adapter.usage import RouterUsage
from axolotl_alphalora.inspection import InspectedData, Inspection, inspect_weights
from axolotl_alphalora.mixture import Mixture

KINDS = {
    "self_attn.q_proj": (24, 32),
    "self_attn.v_proj": (16, 32),
    "mlp.up_proj": (40, 32),
    "mlp.down_proj": (32, 40),
}
"""Kind of module to output and input features."""

PLAN = {"strategy": {"name": "alphalora", "options": {"beta": 2.5}}}


def write_adapter(folder, counts, *, ranks=None, r=4, seed=0, change=None, **config):
    """Write an adapter; returns its tensors by key.

    Args:
        folder: Its directory.
        counts: Experts of each block, for all of `KINDS`, or of each module by its exact name.
        ranks: Module name to rank where it is not `r`.
        r: Rank of an expert.
        seed: Of the random weights.
        change: Called with the tensors, by key, before they are written.
        config: Further keys of the configuration.
    """
    if not isinstance(counts, dict):
        counts = {
            f"model.layers.{i}.{kind}": count for i, count in enumerate(counts) for kind in KINDS
        }
    generator = torch.Generator().manual_seed(seed)
    shape = {key: config[key] for key in ("segments", "router_rank", "share_a") if key in config}
    tensors, mixture = {}, Mixture(**shape)
    for name, count in counts.items():
        if not count:
            continue
        out_features, in_features = KINDS.get(".".join(name.split(".")[3:]), (16, 32))
        rank = (ranks or {}).get(name, r)
        for part, shape in mixture.tensors(in_features, out_features, count, rank).items():
            tensors[f"base_model.model.{name}.{part}"] = torch.randn(shape, generator=generator)
    if change is not None:
        change(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {
        "peft_type": "ALPHALORA",
        "base_model_name_or_path": "some/base",
        "needs_version": "0.1.0",
        "num_experts": counts,
        "r": r,
        "rank_pattern": ranks or {},
        "lora_alpha": 16,
        "use_rslora": False,
        "top_k": 2,
        "plan": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(values | config))
    return tensors


def usage(shares, top_k=2, tokens=100, gates=None):
    """What a router decided that gave its experts these shares of the tokens."""
    gates = shares if gates is None else gates
    entropy = -sum(p * math.log(p) for p in shares if p) / math.log(len(shares))
    return RouterUsage(tokens, min(top_k, len(shares)), tuple(shares), tuple(gates), entropy, 0.7)


def usages(modules, tasks=("code", "maths"), tilt=0.3):
    """Usage of every router: tasks prefer neighbouring experts, the last expert is never used."""
    found = {task: {} for task in ("all", *tasks)}
    for row in modules:
        number = len(row.experts)
        if number == 1:
            continue
        parts = []
        for place, _ in enumerate(tasks):
            raw = [1 + tilt * ((e + place) % 2) for e in range(number)]
            if number > 2:
                raw[-1] = 0
            parts.append([value / sum(raw) for value in raw])
        for task, shares in zip(tasks, parts, strict=True):
            found[task][row.name] = usage(shares)
        mean = [sum(column) / len(parts) for column in zip(*parts, strict=True)]
        found["all"][row.name] = usage(mean, tokens=100 * len(parts))
    return found


def bare(folder):
    """The inspection of a planned adapter of three blocks, whose ranks differ, without data."""
    ranks = {"model.layers.1.mlp.up_proj": 2}
    write_adapter(folder, [1, 3, 4], ranks=ranks, plan=PLAN)
    return inspect_weights(folder)


def watched(found):
    """The same with what the routers decided on rows of two tasks."""
    data = InspectedData("data.jsonl", 200, {"code": 3, "maths": 5})
    return Inspection(found.config, found.modules, usages(found.modules), data)
