"""A plan as a plain LoRA of the same capacity per matrix, for Axolotl's own adapter."""

from __future__ import annotations

import re
from typing import Any

import yaml

from ..allocation import Plan
from ..blocks import group_by_block
from ..mixture import Mixture
from .config import ADAPTER, plain
from .keys import PLUGIN
from .source import Source

_NAMING = ("lora_target_modules", "peft_layers_to_transform", "peft_layers_pattern")
_TARGETS = (*_NAMING, "lora_target_linear", "lora_exclude_modules")


def lora_yaml(source: Source, plan: Plan) -> str:
    """Return the YAML of a LoRA whose rank is the plan's rank times each matrix's number.

    Args:
        source: What was planned: the other keys of its configuration are kept; for a bare model
            the ``lora_*`` keys are all there is.
        plan: The plan.

    Raises:
        ValueError: If the configuration continues from a saved adapter, which is no LoRA.
    """
    keys = lora_keys(plan, source.config)
    if source.path is not None:
        if source.config.get("lora_model_dir"):
            raise ValueError(
                f"{source.path}: `lora_model_dir` names an AlphaLoRA adapter, which no LoRA can "
                "continue from: remove it"
            )
        keys = _run(source.config) | keys
    text = yaml.safe_dump(keys, sort_keys=False, allow_unicode=True, width=1000)
    return "".join(f"# {line}\n" for line in _comment(plan, source)) + text


def lora_keys(plan: Plan, config: dict[str, Any]) -> dict[str, Any]:
    """Return the keys that say which matrices get which rank.

    PEFT takes a key of ``lora_rank_pattern`` as a regular expression for the end of a module's
    name, and the first that matches decides. The keys here begin with ``^``, so that each stands
    for whole names: one for a block whose adapted matrices share a rank, one for a matrix
    otherwise. Where a matrix gets nothing, the configuration excludes modules (a key that only this
    package knows), or it asks for all linear layers (which the host finds in its own way: none in a
    GPT-2, whose layers are ``Conv1D``), ``lora_target_modules`` lists exact names.
    """
    ranks = {name: number * plan.rank for name, number in plan.numbers.items() if number}
    keys: dict[str, Any] = {"lora_r": plan.rank}
    by_rule = config.get("lora_target_linear") or config.get("lora_exclude_modules")
    if by_rule or len(ranks) < len(plan.modules):
        keys["lora_target_modules"] = list(ranks)
    else:
        keys |= {key: plain(config[key]) for key in _NAMING if config.get(key) is not None}
    pattern = _rank_pattern(ranks, plan.rank)
    if pattern:
        keys["lora_rank_pattern"] = pattern
    return keys


def _rank_pattern(ranks: dict[str, int], usual: int) -> dict[str, int]:
    pattern: dict[str, int] = {}
    for block, names in group_by_block(ranks).items():
        shared = {ranks[name] for name in names}
        if len(shared) == 1 and names != [block]:
            found = {f"^{re.escape(block)}\\..*": shared.pop()}
        else:
            found = {f"^{re.escape(name)}": ranks[name] for name in names}
        pattern |= {key: rank for key, rank in found.items() if rank != usual}
    return pattern


def _run(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of a configuration that do not concern this package's adapter."""
    dropped = {ADAPTER, "adapter", "plugins", *_TARGETS}
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if key == "adapter":
            kept["adapter"] = None
        elif key == "plugins":
            others = [plugin for plugin in value or [] if plugin != PLUGIN]
            kept |= {"plugins": others} if others else {}
        elif key not in dropped:
            kept[key] = value
    return kept | {"adapter": "qlora" if config.get("load_in_4bit") else "lora"}


def _comment(plan: Plan, source: Source) -> list[str]:
    config = source.config
    one = Mixture()
    lora = sum(
        one.parameters(row.shape[1], row.shape[0], 1, plan.rank * plan.numbers[row.name])
        for row in plan.modules
        if plan.numbers[row.name]
    )
    routers = _in_routers(plan)
    lines = [
        f"A plain LoRA with the capacity of the plan by {plan.strategy['name']}: N experts of rank "
        f"{plan.rank} become rank N x {plan.rank}.",
        f"Trainable: {lora:,} parameters; the plan has {plan.trainable_parameters:,}, "
        + (f"of which its routers are {routers:,}." if routers else "and no router."),
    ]
    if plan.share_a:
        lines.append(
            f"The plan's experts share one A of rank {plan.rank} in each layer; the LoRA's A has "
            f"rank N x {plan.rank}."
        )
    if config.get("peft_use_rslora"):
        lines.append(
            "With peft_use_rslora the scale is lora_alpha / sqrt(rank): N times the rank counts "
            "sqrt(N) times as much as N experts with equal gates."
        )
    else:
        lines.append(
            "lora_alpha stays: PEFT scales with lora_alpha / rank, which is what N experts with "
            "equal gates come to."
        )
    if config.get("output_dir"):
        lines.append(f"output_dir is still {config['output_dir']}: name another one.")
    if source.path is None:
        lines.append("To be completed: base_model, adapter: lora, lora_alpha, datasets.")
    return lines


def _in_routers(plan: Plan) -> int:
    """Trainable parameters of a plan's routers."""
    return sum(
        rows * columns
        for row in plan.modules
        for name, (rows, columns) in plan.mixture.tensors(
            row.shape[1], row.shape[0], row.experts, row.rank
        ).items()
        if name.startswith("alphalora_router")
    )
