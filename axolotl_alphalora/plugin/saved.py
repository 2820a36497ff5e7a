"""An adapter that is there already (`lora_model_dir`, or a checkpoint to resume) rules the counts.

A YAML that says otherwise is an error before the model is loaded: trained weights fit one set of
counts, and a changed `top_k` would not even show as a mismatch of shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..allocation import Plan
from ..planning import PlanRequest, layers
from .request import plan_request, read_block


def saved_adapter(cfg: Any) -> tuple[str, str] | None:
    """The adapter that the run starts from: (YAML key, directory or hub id), or None."""
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.train import determine_last_checkpoint

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
        ValueError: If there is none, or it is another method's; names the key and the directory.
    """
    from axolotl.loaders.adapter import read_saved_adapter_config

    config = read_saved_adapter_config(source, from_hub=True)
    if config is None:
        where = f"{key}: {source}"
        hint = "The directory does not exist."
        if Path(source).exists():
            hint = "If a run was killed while it saved, delete the directory."
        raise ValueError(f"{where} has no readable adapter_config.json. {hint}")
    if config.get("peft_type") != "ALPHALORA":
        raise ValueError(
            f"{key}: {source} holds a {config.get('peft_type')} adapter, not an AlphaLoRA one. "
            "Set `adapter:` to its own method, or start a new adapter."
        )
    return config


def check_against_yaml(cfg: Any, key: str, source: str, saved: Mapping[str, Any]) -> None:
    """Compare a saved adapter with what the YAML asks for.

    Raises:
        ValueError: Names every setting that differs, with both values.
    """
    differences = list(_differences(cfg, plan_request(cfg), saved))
    if differences:
        raise ValueError(
            f"The YAML contradicts the adapter in {key}: {source}, whose settings rule: "
            + "; ".join(differences)
            + ". Change the YAML to match, or start a new adapter: without it, and in another "
            "output_dir."
        )


def _differences(cfg: Any, request: PlanRequest, saved: Mapping[str, Any]) -> Iterator[str]:
    """Only what the YAML itself says can contradict; defaults do not."""
    written = set(cfg.alphalora_given or ())
    given: dict[tuple[str, str], Any] = {
        ("lora_r", "r"): cfg.lora_r,
        ("lora_alpha", "lora_alpha"): cfg.lora_alpha,
        ("peft_use_rslora", "use_rslora"): cfg.peft_use_rslora,
    }
    if "top_k" in written:
        given["alphalora.top_k", "top_k"] = request.top_k
    modules = request.targets.modules_to_save
    if modules is not None and set(modules) != set(saved["modules_to_save"] or ()):
        given["lora_modules_to_save", "modules_to_save"] = modules
    for (yaml_key, saved_key), value in given.items():
        if value is not None and value != saved[saved_key]:
            yield f"{yaml_key} is {value} in the YAML and {saved[saved_key]} in the adapter"
    yield from _target_differences(request, saved["num_experts"])
    path = read_block(cfg).plan
    if path is not None:
        difference = Plan.load(path).differences(saved["num_experts"])
        if difference:
            yield f"alphalora.plan {path}: {difference}"
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


def _plan_differences(written: set[str], request: PlanRequest, plan: Plan) -> Iterator[str]:
    blocks = len(plan.blocks)
    total = request.budget.get("total_experts")
    if total is None:
        total = round(request.budget["experts_per_block"] * blocks)
    asked_total = written & {"total_experts", "experts_per_block"}
    if asked_total and total != plan.budget["total_experts"]:
        yield (
            f"the YAML's budget is {total} experts over {blocks} blocks and the adapter's "
            f"{plan.budget['total_experts']}"
        )
    for name in written & {"min_experts", "max_experts"}:
        if request.budget.get(name) != plan.budget[name]:
            yield (
                f"alphalora.{name} is {request.budget.get(name)} in the YAML and "
                f"{plan.budget[name]} in the adapter"
            )
    asked = {"name": request.strategy, **request.options} if "allocation" in written else {}
    for name, value in asked.items():
        if plan.strategy.get(name) != value:
            option = "strategy" if name == "name" else name
            yield (
                f"alphalora.allocation.{option} is {value} in the YAML and "
                f"{plan.strategy.get(name)} in the adapter"
            )
