"""A plan as a plain LoRA of the same capacity per matrix, for Axolotl's own adapter or PEFT."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from ..allocation import Plan
from ..blocks import group_by_block
from ..files import KEY_PREFIX
from ..hosts.constants import LORA_ALPHA, LORA_KERNELS, OUTPUT_DIR
from ..mixture import Mixture
from .config import ADAPTER, plain
from .keys import PLUGIN
from .request import base_model
from .source import CONTINUED, Source

_NAMING = ("lora_target_modules", "peft_layers_to_transform", "peft_layers_pattern")
_TARGETS = (*_NAMING, "lora_target_linear", "lora_exclude_modules")


def lora_config(source: Source, plan: Plan) -> dict[str, Any]:
    """Return the arguments of PEFT's `LoraConfig` for the same, as JSON values.

    Target modules are exact names. A key of `rank_pattern` and `alpha_pattern` begins with
    `^` and is one module's whole name, so that it stands for no other. A module that is planned N
    experts of rank r has rank N r and the scale that its experts have together, each with the gate
    1/N: `lora_alpha / (N r)`, which PEFT makes of `lora_alpha` by itself, or
    `lora_alpha / (N sqrt(r))` with rsLoRA, for which `alpha_pattern` has
    `lora_alpha / sqrt(N)`. A plan with `spend: rank` keeps the scale of its one expert.

    Args:
        source: What was planned. What its configuration leaves out, and all but ranks for a bare
            model, is left to PEFT's defaults.
        plan: The plan.
    """
    config = source.config
    numbers = {name: number for name, number in plan.numbers.items() if number}
    found: dict[str, Any] = {"peft_type": "LORA", "task_type": _task(source), "r": plan.rank}
    for key, option in _FOR_PEFT.items():
        if config.get(key) is not None:
            found[option] = plain(config[key])
    found["target_modules"] = list(numbers)
    found["rank_pattern"] = {
        f"^{re.escape(name)}": number * plan.rank for name, number in numbers.items() if number > 1
    }
    if found.get("use_rslora") and plan.spend == "experts":
        alpha = found.get("lora_alpha", LORA_ALPHA)
        found["alpha_pattern"] = {
            f"^{re.escape(name)}": alpha / math.sqrt(number)
            for name, number in numbers.items()
            if number > 1
        }
    return found


def lora_json(source: Source, plan: Plan) -> str:
    """Return `lora_config` as the text of an `adapter_config.json`."""
    return json.dumps(lora_config(source, plan), indent=2) + "\n"


def lora_python(source: Source, plan: Plan) -> str:
    """Return `lora_config` as a Python module with the variable `config`."""
    lines = [f"# {line}" for line in comment(plan, source, for_host=False)]
    lines += ["from peft import LoraConfig", "", "config = LoraConfig("]
    for key, value in lora_config(source, plan).items():
        if key == "peft_type" or value is None:
            continue
        if isinstance(value, list):
            lines += [f"    {key}=[", *(f"        {item!r}," for item in value), "    ],"]
        elif isinstance(value, dict):
            items = (f"        {name!r}: {item!r}," for name, item in value.items())
            lines += [f"    {key}={{", *items, "    },"]
        else:
            lines.append(f"    {key}={value!r},")
    return "\n".join([*lines, ")"]) + "\n"


def check_lora(source: Source, plan: Plan) -> None:
    """Check on a model without weights that PEFT makes of it what was planned.

    Raises:
        ValueError: If PEFT takes other layers or gives another rank; names the first.
    """
    from peft import LoraConfig, get_peft_model

    base: Any = base_model(source.request).skeleton
    config = lora_config(source, plan) | {"modules_to_save": None, "task_type": None}
    try:
        with warnings.catch_warnings(action="ignore"):
            adapted = get_peft_model(base, LoraConfig(**config), low_cpu_mem_usage=True)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"PEFT makes no LoRA of this plan: {error}. {_REWRITTEN}") from error
    found = {
        name.removeprefix(KEY_PREFIX): module.r["default"]
        for name, module in adapted.named_modules()
        if isinstance(getattr(module, "r", None), dict) and "default" in module.r
    }
    for name in [*plan.numbers, *found]:
        wanted = plan.numbers.get(name, 0) * plan.rank
        if found.get(name, 0) != wanted:
            raise ValueError(
                f"PEFT gives {name} a LoRA of rank {found.get(name, 0)}, where the plan has "
                f"{wanted}. {_REWRITTEN}"
            )


_REWRITTEN = (
    "In some mixture-of-experts models PEFT takes the names gate_proj, up_proj and down_proj for "
    "the stacked experts: leave these layers out with `lora_exclude_modules`."
)
_FOR_PEFT = {
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "peft_use_rslora": "use_rslora",
    "lora_modules_to_save": "modules_to_save",
}


def _task(source: Source) -> str | None:
    """The task that the host gives its LoRA; PEFT's default, none, for a bare model."""
    if source.path is None:
        return None
    if source.config.get("process_reward_model"):
        return "TOKEN_CLS"
    return "SEQ_CLS" if source.config.get("reward_model") else "CAUSAL_LM"


def lora_yaml(source: Source, plan: Plan) -> str:
    """Return the YAML of a LoRA whose rank is the plan's rank times each matrix's number.

    Args:
        source: What was planned: the other keys of its configuration are kept; for a bare model
            the `lora_*` keys are all there is.
        plan: The plan.

    Raises:
        ValueError: If the configuration continues from a saved adapter, which is no LoRA.
    """
    keys = lora_keys(plan, source.config)
    if source.path is not None:
        for key in CONTINUED:
            if source.config.get(key):
                raise ValueError(
                    f"{source.path}: `{key}` names an AlphaLoRA adapter, which no LoRA can "
                    "continue from: remove it"
                )
        keys = _run(source.config) | keys
    text = yaml.safe_dump(keys, sort_keys=False, allow_unicode=True, width=1000)
    return "".join(f"# {line}\n" for line in comment(plan, source)) + text


FORMATS: Mapping[str, Callable[[Source, Plan], str]] = {
    "json": lora_json,
    "python": lora_python,
    "yaml": lora_yaml,
}
"""What writes each format."""


def lora_keys(plan: Plan, config: dict[str, Any]) -> dict[str, Any]:
    """Return the keys that say which matrices get which rank.

    PEFT takes a key of `lora_rank_pattern` as a regular expression for the end of a module's
    name, and the first that matches decides. The keys here begin with `^`, so that each stands
    for whole names: one for a block whose adapted matrices share a rank, one for a matrix
    otherwise. Where a matrix gets nothing, the configuration excludes modules (a key that only this
    package knows), or it asks for all linear layers (which the host finds in its own way: none in a
    GPT-2, whose layers are `Conv1D`), `lora_target_modules` lists exact names.
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
    kept["adapter"] = "qlora" if config.get("load_in_4bit") else "lora"
    if not _has_gpu():
        # Axolotl switches them on for a LoRA on any machine.
        kept |= {key: False for key in LORA_KERNELS if config.get(key) is None}
    # The run of the YAML must not lose its adapter, nor have this one resume from its checkpoints.
    kept["output_dir"] = f"{str(config.get('output_dir') or OUTPUT_DIR).rstrip('/')}-lora"
    return kept


def comment(plan: Plan, source: Source, for_host: bool = True) -> list[str]:
    """Say what a written LoRA is, and what it is not.

    Args:
        plan: The plan.
        source: What was planned.
        for_host: Whether it is the host's YAML, or a config of PEFT.
    """
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
    if plan.spend == "rank":
        lines.append("The scale is that of the plan's one expert: lora_alpha by the rank.")
    elif not config.get("peft_use_rslora"):
        lines.append(
            "lora_alpha stays: PEFT scales with lora_alpha / rank, which is what N experts with "
            "equal gates come to."
        )
    elif for_host:
        lines.append(
            "With peft_use_rslora the scale is lora_alpha / sqrt(rank): N times the rank counts "
            "sqrt(N) times as much as N experts with equal gates. Axolotl takes whole numbers "
            "only in `lora_alpha_pattern`, so this is left as it is; PEFT's own config (a .json or "
            ".py file) has the scale of the experts."
        )
    else:
        lines.append(
            "alpha_pattern has lora_alpha / sqrt(N), for the scale of N experts with equal gates."
        )
    start = (config.get(ADAPTER) or {}).get("init_from")
    if start:
        lines.append(
            f"The plan's experts start from the LoRA in {start} (alphalora.init_from); this LoRA "
            "starts anew."
        )
    if for_host and source.path is not None and not _has_gpu():
        lines.append(
            "Axolotl's fused kernels for LoRA need a GPU, and there is none here: they are off. To "
            "train on one, remove lora_*_kernel."
        )
    if for_host and config.get("hub_model_id"):
        lines.append(f"hub_model_id is still {config['hub_model_id']}: name another one.")
    if source.path is not None and config.get("lora_alpha") is None:
        lines.append("To be completed: lora_alpha.")
    if source.path is None:
        lines.append(
            "To be completed: base_model, adapter: lora, lora_alpha, datasets."
            if for_host
            else f"Not said, so PEFT's defaults: task_type, lora_alpha ({LORA_ALPHA}), "
            "lora_dropout (0)."
        )
    return lines


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


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
