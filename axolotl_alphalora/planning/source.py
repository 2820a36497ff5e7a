"""What is to be planned: an Axolotl YAML, or a model with the defaults; and what changes it.

A specification is a short description of one way of measuring or sharing out, as typed on the
command line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..allocation import CONTROLS, Budget, Plan, registry
from ..allocation.registry import read_value
from ..files import ADAPTER_CONFIG
from ..settings import ESTIMATORS, QualitySettings
from .config import ADAPTER
from .keys import (
    KEYS,
    PLUGIN,
    REFUSED_KEYS,
    YAML_SUFFIXES,
    as_written,
    check_adapter,
    check_plugins,
    check_spelling,
    lacking,
    read_yaml,
)
from .request import PlanRequest, plan_request, read_block
from .saved_plan import check_optimizer

CONTINUED = ("lora_model_dir", "resume_from_checkpoint")
"""Keys of the host for an adapter that a run goes on with."""


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
        source: An Axolotl YAML, or a model's directory, hub id or `.gguf` file (every linear
            layer, the defaults of the block).
        strategy: A specification that replaces the allocation, see `read_spec`. With
            a saved plan the budget is the plan's, or what it comes to; a strategy with numbers of
            its own takes none.

    Raises:
        ValueError: If the YAML is none, a key in it is wrong, the saved plan cannot be read or
            counts another optimizer, or the LoRA or adapter to start from is not there; names file
            and key.
    """
    config, path = _read(str(source))
    notes = tuple(_notes(config, path))
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
        try:
            check_optimizer(saved[1], config)
        except ValueError as error:
            raise ValueError(f"{path}: `alphalora.plan`: {block.plan}: {error}") from error
        request = _as_saved(request, saved[1])
    if strategy is not None:
        if saved is None:
            # The block's defaults depend on the allocation.
            allocation = changed_allocation(request.strategy, request.options, strategy)
            changes = (config.get(ADAPTER) or {}) | {"allocation": allocation}
            request = plan_request(config, read_block({ADAPTER: changes}))
        else:
            budget = common_budget(request.budget, saved[1])
            request = with_budget(changed(request, strategy), budget)
        saved = None
    return Source(request, saved, config, path, notes)


def common_budget(given: Budget | None, plan: Plan) -> Budget:
    """Return the budget for other plans that shall cost what a plan does.

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
            raise ValueError(
                f"`adapter` is {cfg['adapter']}, so there is nothing to plan: set "
                f"`adapter: {ADAPTER}`."
            )
        check_spelling(cfg, REFUSED_KEYS | KEYS.keys())
        return as_written(cfg), path
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _notes(cfg: dict[str, Any], path: Path | None) -> Iterator[str]:
    """What is to be said of a configuration beside its plan."""
    if cfg.get("adapter") == ADAPTER and not cfg.get("plugins"):
        yield (
            f"`adapter: {ADAPTER}` needs `plugins: [{PLUGIN}]`, without which `axolotl train` does "
            "not know it."
        )
    if path is not None and cfg.get("adapter") is None:
        yield f"`adapter: {ADAPTER}` is missing, without which `axolotl train` adds no experts."
    if path is not None and not any(cfg.get(key) for key in CONTINUED):
        yield from filter(None, [lacking(cfg)])
    for key in CONTINUED:
        adapter = cfg.get(key)
        if not isinstance(adapter, str):
            continue
        may_be = key == "lora_model_dir" and not Path(adapter).parent.is_dir()
        on_hub = may_be and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", adapter)
        if not on_hub and not (Path(adapter) / ADAPTER_CONFIG).is_file():
            raise ValueError(
                f"{path}: `{key}`: {adapter} has no {ADAPTER_CONFIG}. Name the directory that a "
                "run has saved its adapter in."
            )
        yield (
            f"The run goes on with the adapter of `{key}: {adapter}`, whose numbers of experts "
            "rule: this plan would be that of a new one."
        )


AS_GIVEN = "as given"
"""Label of what the specifications are compared with."""

# A quote inside a word is an apostrophe; two single quotes inside a quoted text stand for one.
_TOKEN = re.compile(r""""(?:\\.|[^"\\])*"|(?<!\w)'(?:''|[^'])*'|.""", re.DOTALL)


def read_spec(spec: str, measuring: bool = False) -> dict[str, Any]:
    """Read what one specification changes.

    Args:
        spec: Parts joined by `+`: the name of a strategy (`mola`, `mola:2468`), the name of
            an estimator, `opposite` or `shuffled` (values of `order`), or `option=value`,
            with values as in YAML: `estimator=hill+beta=1`, `counts+experts=[1, 2]`.
        measuring: Whether it is one of measuring only: no strategy and no order.

    Returns:
        Option to value, `strategy` among them.

    Raises:
        ValueError: If a part is none of these, or an option is named twice.
    """
    words: dict[str, Sequence[str]] = {"estimator": ESTIMATORS}
    if not measuring:
        words = {"strategy": registry().names(), **words, "order": CONTROLS}
    found: dict[str, Any] = {}
    for part in split_outside(spec, "+"):
        pieces = (*re.split("([:=])", part, maxsplit=1), "", "")
        key, sign, text = (piece.strip() for piece in pieces[:3])
        option = next((option for option in reversed(words) if key in words[option]), None)
        if sign == ":" and not measuring:
            read = registry().read(part)
        elif sign == "=":
            try:
                read = {key: read_value(text)}
            except ValueError as error:
                raise ValueError(f"{spec}: {error}") from error
        elif option is not None and not sign:
            read = {option: key}
        else:
            choices = "".join(
                f" no {option} ({', '.join(names)})," for option, names in words.items()
            )
            raise ValueError(f"{spec}: {part!r} is{choices.removesuffix(',')} and no option=value")
        for name, value in read.items():
            if name in found:
                raise ValueError(f"{spec}: {name} is named twice")
            found[name] = value
    return found


def quality_options(spec: str) -> dict[str, Any]:
    """Read a specification of measuring only.

    Raises:
        ValueError: As `read_spec` does, and if it names an option of sharing out.
    """
    found = read_spec(spec, measuring=True)
    for key in found:
        if key not in QualitySettings.names():
            raise ValueError(
                f"{spec}: {key} is no option of measuring: it takes "
                f"{', '.join(QualitySettings.names())}"
            )
    return found


def changed_allocation(strategy: str, options: Mapping[str, Any], spec: str) -> dict[str, Any]:
    """Apply a specification to a strategy and its options.

    What the specification leaves open is kept, unless it names another strategy: that one has its
    own options, with their defaults.

    Args:
        strategy: Name of the strategy.
        options: Its options, as far as they were given.
        spec: The specification.

    Returns:
        `strategy` and the options that are given then.

    Raises:
        ValueError: If the specification cannot be read, or the strategy does not take an option.
        ImportError: If the estimator needs a package that is not installed.
    """
    given = read_spec(spec)
    kept = dict(options) if given.get("strategy", strategy) == strategy else {}
    if given.get("order", "shuffled") != "shuffled":
        kept.pop("order_seed", None)
    found = {"strategy": strategy, **kept, **given}
    options = {name: value for name, value in found.items() if name != "strategy"}
    try:
        settings = registry().get(found["strategy"]).options(options)
        check_estimator(getattr(settings, "estimator", ""))
    except (ValueError, ImportError) as error:
        raise type(error)(f"{spec}: {error}") from error
    return found


def changed(request: PlanRequest, spec: str) -> PlanRequest:
    """Apply a specification to a request, see `changed_allocation`."""
    found = changed_allocation(request.strategy, request.options, spec)
    return replace(request, strategy=found.pop("strategy"), options=found)


def check_estimator(estimator: str, samples: int = 0) -> None:
    """Check that an estimator can run here, and be resampled if that is wanted.

    Raises:
        ValueError: If it can not be resampled.
        ImportError: If it needs a package that is not installed.
    """
    if estimator != "weightwatcher":
        return
    if find_spec("weightwatcher") is None:
        raise ImportError(
            "the estimator weightwatcher needs the package of that name: "
            "`pip install weightwatcher`"
        )
    if samples:
        raise ValueError(
            "--confidence resamples spectra, and weightwatcher analyses matrices: use the "
            "estimator ks, which gives the same alphas"
        )


def split_outside(text: str, separator: str) -> list[str]:
    """Split at every separator that is outside square and curly brackets and quotes, as in YAML.

    Returns:
        The parts, without spaces around them.
    """
    parts, depth = [""], 0
    for token in _TOKEN.findall(text):
        if token == separator and not depth:
            parts.append("")
            continue
        if token in "[{":
            depth += 1
        elif token in "]}":
            depth = max(0, depth - 1)
        parts[-1] += token
    return [part.strip() for part in parts]
