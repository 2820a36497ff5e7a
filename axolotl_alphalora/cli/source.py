"""What `alphalora plan` is given: an Axolotl YAML, or a model with the defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..allocation import Plan
from ..planning import PlanRequest
from ..plugin.block import ADAPTER
from ..plugin.keys import PLUGIN, as_written, check_adapter, check_plugins, check_spelling
from ..plugin.request import plan_request, read_block
from .budgets import common_budget, taken_budget
from .paths import YAML_SUFFIXES, read_yaml
from .specs import changed_allocation

__all__ = ["Source", "read_source"]


@dataclass(frozen=True)
class Source:
    """What is to be planned.

    Attributes:
        request: The request.
        saved: The saved plan that is to be used instead of making one, and its path.
        config: The keys of the configuration; those that stand for a bare model.
        path: The YAML, None for a bare model.
        notes: What the run would stumble over, and the plan does not.
    """

    request: PlanRequest
    saved: tuple[Path, Plan] | None
    config: dict[str, Any]
    path: Path | None
    notes: tuple[str, ...] = ()


def read_source(source: str | Path, strategy: str | None = None) -> Source:
    """Read what is to be planned.

    A request for a saved plan has the strategy and the budget that the plan was made with.

    Args:
        source: An Axolotl YAML, or a model's directory, hub id or ``.gguf`` file (every linear
            layer, the defaults of the block).
        strategy: A specification that replaces the allocation, see
            :func:`~axolotl_alphalora.cli.specs.read_spec`. With a saved plan the budget is the
            plan's, or what it comes to; a strategy with numbers of its own takes none.

    Raises:
        ValueError: If the YAML is none, a key in it is wrong, the saved plan cannot be read, or the
            LoRA to start from is not there; names file and key.
    """
    config, path = _read(str(source))
    request = plan_request(config)
    block = read_block(config)
    if block.init_from is not None and not Path(block.init_from).is_dir():
        raise ValueError(
            f"{path}: `alphalora.init_from`: {block.init_from} is no directory. Name that of a "
            "LoRA saved by PEFT."
        )
    named = block.plan
    saved = None
    if named is not None:
        saved = Path(named), Plan.load(named)
        request = _as_saved(request, saved[1])
    if strategy is not None:
        if saved is None:
            request = plan_request(_with_allocation(config, request, strategy))
        else:
            found = changed_allocation(request.strategy, request.options, strategy)
            budget = common_budget(request.budget, saved[1])
            request = replace(request, strategy=found.pop("strategy"), options=found)
            request = replace(request, budget=taken_budget(request, budget))
        saved = None
    return Source(request, saved, config, path, _notes(config))


def _as_saved(request: PlanRequest, plan: Plan) -> PlanRequest:
    """Return a request with what a saved plan was made with, which the YAML leaves out."""
    budget = {key: plan.budget[key] for key in ("min_experts", "max_experts")}
    if plan.budget["kind"] is None:
        # Numbers that the strategy brought itself have no bounds either.
        budget = {}
    else:
        budget[plan.budget["kind"]] = plan.budget["asked"]
    return replace(
        request,
        strategy=plan.strategy["name"],
        options=plan.strategy["options"],
        budget={key: value for key, value in budget.items() if value is not None},
        spend=plan.spend,
        optimizer=plan.budget["optimizer"],
    )


def _with_allocation(config: dict[str, Any], request: PlanRequest, spec: str) -> dict[str, Any]:
    """Return a configuration with another allocation, for the defaults that depend on it."""
    allocation = changed_allocation(request.strategy, request.options, spec)
    return config | {ADAPTER: (config.get(ADAPTER) or {}) | {"allocation": allocation}}


def _read(source: str) -> tuple[dict[str, Any], Path | None]:
    """The configuration in a YAML file, or one that stands for a bare model."""
    path = Path(source)
    if path.suffix not in YAML_SUFFIXES:
        return as_written({"base_model": source, "lora_target_linear": True}), None
    cfg = read_yaml(path)
    try:
        check_adapter(cfg.get("adapter"))
        check_plugins(cfg.get("plugins"))
        if cfg.get("adapter") not in (None, ADAPTER):
            raise ValueError(f"`adapter` is {cfg['adapter']}, so there is nothing to plan.")
        check_spelling(cfg, _known())
        return as_written(cfg), path
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _notes(cfg: dict[str, Any]) -> tuple[str, ...]:
    if cfg.get("adapter") != ADAPTER or cfg.get("plugins"):
        return ()
    return (
        f"`adapter: {ADAPTER}` needs `plugins: [{PLUGIN}]`, without which `axolotl train` does not "
        "know it.",
    )


def _known() -> set[str]:
    """Adapter options of the host, whose own schema would take seconds to import."""
    from ..plugin.refusals import HONOURED, REFUSED

    return {*HONOURED, *(row.key.partition(".")[0] for row in REFUSED)}
