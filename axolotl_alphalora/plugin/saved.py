"""An adapter that is there already (`lora_model_dir`, or a checkpoint to resume) rules the counts.

A YAML that says otherwise is an error before the model is loaded: trained weights fit one set of
counts, and a changed `top_k` would not even show as a mismatch of shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..allocation import Budget, Options, Plan
from ..files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, METHOD, check_version, read_adapter_config
from ..hosts.constants import CLASSIFIER_HEADS, SPAN_HEADS
from ..mixture import Mixture
from ..planning import ADAPTER, AlphaLoraConfigBlock, PlanRequest, layers
from ..planning.config import MIXTURE
from ..planning.request import in_yaml
from ..spectral.model_files import locate
from .checkpoints import damage, find_flaw

KEPT: Mapping[str, str] = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "peft_use_rslora": "use_rslora",
    "lora_modules_to_save": "modules_to_save",
    **{f"{ADAPTER}.{key}": key for key in MIXTURE},
}
"""Keys of the YAML that an adapter rules, and the names of the settings in its config; besides
those that decide how many experts there are, and where."""

CHANGEABLE: Mapping[str, str] = {
    "lora_dropout": "lora_dropout",
    "alphalora.aux_loss_coef": "aux_loss_coef",
    "alphalora.balance_over": "balance_over",
}
"""Keys that may say otherwise than the adapter: they change how it learns, not what it computes."""

_HEADS = {*CLASSIFIER_HEADS, *SPAN_HEADS}
"""What PEFT adds to `modules_to_save` for a task, whether the model has it or not."""


def saved_adapter(cfg: Any) -> tuple[str, str] | None:
    """The adapter that the run starts from: (YAML key, directory or hub id), or None."""
    from .host import DictDefault, determine_last_checkpoint

    if cfg.lora_model_dir:
        return "lora_model_dir", str(cfg.lora_model_dir)
    if cfg.resume_from_checkpoint:
        return "resume_from_checkpoint", str(cfg.resume_from_checkpoint)
    # The host decides this only after the model is loaded, and writes into what it is given.
    checkpoint = determine_last_checkpoint(DictDefault(cfg))
    return ("auto_resume_from_checkpoints", str(checkpoint)) if checkpoint else None


def read_saved(key: str, source: str) -> dict[str, Any]:
    """The saved `adapter_config.json`.

    Raises:
        ValueError: If there is none, it is another method's or a newer release's, or its weights
            are damaged; names the key and the directory.
    """
    try:
        file = locate(source).find(ADAPTER_CONFIG)
        config = read_adapter_config(file.parent) if file else {}
    except Exception:  # errors of a proxy are no OSErrors
        config = {}
    if not config:
        where = f"{key}: {source}"
        hint = "The directory does not exist."
        if Path(source).exists():
            hint = "If a run was killed while it saved, delete the directory."
            if find_flaw(Path(source)) is None:
                hint = (
                    f"Copy the {ADAPTER_CONFIG} of the run that saved it into it, if that was one "
                    "with `adapter: alphalora`; else name another directory."
                )
        raise ValueError(f"{where} has no readable {ADAPTER_CONFIG}. {hint}")
    if config.get("peft_type") != METHOD:
        raise ValueError(
            f"{key}: {source} holds a {config.get('peft_type')} adapter, not an AlphaLoRA one. "
            "Set `adapter:` to its own method, or start a new adapter."
        )
    try:
        check_version(config.get("needs_version", "0.1.0"))
    except ValueError as error:
        raise ValueError(f"{key}: {source}: {error}") from error
    weights = Path(source) / ADAPTER_WEIGHTS
    there = weights.exists() or weights.with_suffix(".bin").exists()
    if key == "lora_model_dir" and Path(source).is_dir() and not there:
        raise ValueError(
            f"{key}: {source} has no {weights.name}. Name the directory that a run has saved its "
            "adapter in."
        )
    flaw = damage(weights) if weights.exists() else None
    if flaw is not None:
        raise ValueError(f"{key}: {source}: {flaw}. Use another checkpoint, or train again.")
    return config


def changes(cfg: Any, block: AlphaLoraConfigBlock) -> dict[str, Any]:
    """What the YAML itself says of the settings that an adapter leaves to it, by their names."""
    written, found = set(cfg.alphalora_given or ()), {}
    for key, name in CHANGEABLE.items():
        if name in written:
            source = block if key.startswith(f"{ADAPTER}.") else cfg
            found[name] = getattr(source, name)
    return found


def check_against_yaml(
    cfg: Any,
    block: AlphaLoraConfigBlock,
    request: PlanRequest,
    key: str,
    source: str,
    saved: Mapping[str, Any],
) -> None:
    """Compare a saved adapter with what the YAML asks for.

    Args:
        cfg: The host's configuration.
        block: Its `alphalora:` block.
        request: What a plan is asked for with it.
        key: The key that names the adapter.
        source: The adapter's directory or hub id.
        saved: Its `adapter_config.json`.

    Raises:
        ValueError: Names every setting that differs, with both values.
    """
    differences = list(_differences(cfg, block.plan, request, saved))
    if differences:
        base = saved.get("base_model_name_or_path")
        if base not in (None, cfg.base_model):
            differences.append(f"it was trained on {base}, and base_model is {cfg.base_model}")
        raise ValueError(
            f"The YAML contradicts the adapter in {key}: {source}, whose settings rule: "
            + "; ".join(differences)
            + ". Change the YAML to match, or start a new adapter: without it, and in another "
            "output_dir."
        )


def _differences(
    cfg: Any, path: str | None, request: PlanRequest, saved: Mapping[str, Any]
) -> Iterator[str]:
    """Only what the YAML itself says can contradict; defaults do not."""
    written = set(cfg.alphalora_given or ())
    given = {
        "lora_r": cfg.lora_r,
        "lora_alpha": cfg.lora_alpha,
        "peft_use_rslora": cfg.peft_use_rslora,
        "lora_modules_to_save": request.targets.modules_to_save,
        **{f"{ADAPTER}.{key}": getattr(request.mixture, key) for key in MIXTURE if key in written},
    }
    saved = {**asdict(Mixture()), **saved}  # adapters of older releases have whole experts
    for key, name in KEPT.items():
        value, found = given.get(key), saved[name]
        same = value == found
        if name == "modules_to_save":
            asked, kept = set(value or ()), set(found or ())
            same = asked | (kept & _HEADS) == kept
        if value is not None and not same:
            yield f"{key} is {in_yaml(value)} in the YAML and {in_yaml(found)} in the adapter"
    yield from _target_differences(request, saved["num_experts"])
    if path is not None:
        plan = Plan.load(path)
        difference = plan.differences(saved["num_experts"]) or _rank_difference(plan, saved)
        if difference:
            yield f"alphalora.plan {path}: {difference}"
        for key in MIXTURE:
            planned, found = getattr(plan, key), saved[key]
            if planned != found:
                yield (
                    f"alphalora.plan {path}: {key} is {in_yaml(planned)} in the plan and "
                    f"{in_yaml(found)} in the adapter"
                )
    elif saved.get("plan") is not None:
        yield from _plan_differences(written, request, Plan.from_dict(saved["plan"]))


def _target_differences(request: PlanRequest, counts: Mapping[str, int]) -> Iterator[str]:
    if not (request.targets.modules or request.targets.linear):
        return
    targets = layers(request)
    for name in targets:
        if name not in counts:
            yield f"target module {name} of the YAML has no experts in the adapter"
            return
    for name, count in counts.items():
        if count and name not in targets:
            yield f"{name} has {count} experts in the adapter and is no target in the YAML"
            return


def _rank_difference(plan: Plan, saved: Mapping[str, Any]) -> str | None:
    """A sentence about the first module whose experts have another rank; the counts agree."""
    ranks = saved.get("rank_pattern", {})  # adapters of older releases have none
    for module in plan.modules:
        found = ranks.get(module.name, saved["r"])
        if module.experts and module.rank != found:
            return (
                f"module {module.name!r} has rank {module.rank} in the plan, but {found} in the "
                "adapter"
            )
    return None


def _plan_differences(written: set[str], request: PlanRequest, plan: Plan) -> Iterator[str]:
    yield from _budget_differences(written, request, plan)
    if "spend" in written and request.spend != plan.spend:
        yield f"alphalora.spend is {request.spend} in the YAML and {plan.spend} in the adapter"
    if "allocation" not in written:
        return
    if request.strategy != plan.strategy["name"]:
        yield (
            f"alphalora.allocation.strategy is {request.strategy} in the YAML and "
            f"{plan.strategy['name']} in the adapter"
        )
        return
    settings = request.settings.model_dump(mode="json")
    recorded = Options().model_dump() | plan.strategy["options"]
    for name in request.options:
        if settings[name] == "auto":
            continue  # the plan records what that came to
        if settings[name] != recorded.get(name, settings[name]):
            yield (
                f"alphalora.allocation.{name} is {settings[name]} in the YAML and "
                f"{recorded[name]} in the adapter"
            )
    file = settings.get("experts") if request.strategy == "counts" else None
    if isinstance(file, str):
        difference = Plan.load(file).number_differences(plan)
        if difference:
            yield f"alphalora.allocation.experts {file}: {difference}"


def _budget_differences(written: set[str], request: PlanRequest, plan: Plan) -> Iterator[str]:
    budget = request.budget or Budget()
    blocks = len(plan.block_numbers)
    kind, amount = budget.kind, budget.amount
    if kind == "experts_per_block":
        kind, amount = "total_experts", round((amount or 0) * blocks)
    if budget.kind in written and (kind, amount) != (plan.budget["kind"], plan.budget["asked"]):
        yield (
            f"the YAML's budget is {_spelt(kind, amount)} over {blocks} blocks and the adapter's "
            f"{_spelt(plan.budget['kind'], plan.budget['asked'])}"
        )
    for name, asked, found in (
        ("min_experts", budget.min_experts, plan.budget["min_experts"]),
        ("max_experts", budget.max_experts, plan.budget["max_experts"]),
    ):
        if name in written and asked != found:
            yield f"alphalora.{name} is {asked} in the YAML and {found} in the adapter"


def _spelt(kind: str | None, amount: float | None) -> str:
    return "none" if kind is None else f"{kind} {amount:g}"
