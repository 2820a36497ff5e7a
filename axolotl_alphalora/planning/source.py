"""What is to be planned: an Axolotl YAML, or a model with the defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..allocation import Budget, Plan
from .config import ADAPTER, AlphaLoraConfigBlock
from .keys import (
    KEYS,
    PLUGIN,
    REFUSED_KEYS,
    YAML_SUFFIXES,
    as_written,
    check_adapter,
    check_plugins,
    check_spelling,
    read_yaml,
)
from .request import PlanRequest, plan_request, read_block
from .specs import changed, changed_allocation


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
        strategy: A specification that replaces the allocation, see :func:`.specs.read_spec`. With
            a saved plan the budget is the plan's, or what it comes to; a strategy with numbers of
            its own takes none.

    Raises:
        ValueError: If the YAML is none, a key in it is wrong, the saved plan cannot be read, or the
            LoRA to start from is not there; names file and key.
    """
    config, path = _read(str(source))
    block = read_block(config)
    request = plan_request(config, block)
    if block.init_from is not None and not Path(block.init_from).is_dir():
        raise ValueError(
            f"{path}: `alphalora.init_from`: {block.init_from} is no directory. Name that of a "
            "LoRA saved by PEFT."
        )
    saved = None
    if block.plan is not None:
        saved = Path(block.plan), Plan.load(block.plan)
        request = _as_saved(request, saved[1])
    if strategy is not None:
        if saved is None:
            request = plan_request(config, _with_allocation(config, request, strategy))
        else:
            budget = common_budget(request.budget, saved[1])
            request = with_budget(changed(request, strategy), budget)
        saved = None
    return Source(request, saved, config, path, _notes(config))


def common_budget(given: Budget | None, plan: Plan) -> Budget:
    """Return the budget for other plans that shall cost what a plan does.

    Args:
        given: The budget that the plan was asked for with.
        plan: The plan.

    Returns:
        The same, if the plan had a budget; otherwise what it comes to, as experts, or as parameters
        where these are no whole number. Modules may be left alone then if the plan leaves some.
    """
    budget = given or Budget()
    if plan.budget["kind"] is not None:
        return budget
    if not all(plan.numbers.values()):
        budget = replace(budget, min_experts=0)
    total = plan.total_experts
    if total == int(total):
        return replace(budget, total_experts=int(total))
    return replace(budget, total_parameters=plan.trainable_parameters)


def with_budget(request: PlanRequest, budget: Budget) -> PlanRequest:
    """Give a request a budget, unless its strategy has numbers of its own and takes none."""
    takes_none = request.settings.budget_use == "none"
    return replace(request, budget=None if takes_none else budget)


def _as_saved(request: PlanRequest, plan: Plan) -> PlanRequest:
    """Return a request with what a saved plan was made with, which the YAML leaves out."""
    record, budget = plan.budget, None
    if record["kind"] is not None:
        asked: Any = {record["kind"]: record["asked"]}
        budget = Budget(
            **asked, min_experts=record["min_experts"], max_experts=record["max_experts"]
        )
    return replace(
        request,
        strategy=plan.strategy["name"],
        options=plan.strategy["options"],
        budget=budget,
        spend=plan.spend,
        optimizer=record["optimizer"],
    )


def _with_allocation(
    config: dict[str, Any], request: PlanRequest, spec: str
) -> AlphaLoraConfigBlock:
    """Read a configuration's block with another allocation, for the defaults that depend on it."""
    allocation = changed_allocation(request.strategy, request.options, spec)
    return read_block({ADAPTER: (config.get(ADAPTER) or {}) | {"allocation": allocation}})


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
        check_spelling(cfg, REFUSED_KEYS | KEYS.keys())
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
