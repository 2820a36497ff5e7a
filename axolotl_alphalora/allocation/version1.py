"""Plans of version 1, which adapters of the first release embed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axolotl_alphalora.allocation.reading import check_object, read_list, read_object

__all__ = ["upgraded"]

_KEYS = (
    "format version base_model weights strategy budget top_k rank total_experts "
    "trainable_parameters blocks modules"
).split()


def upgraded(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan of version 1 as one of version 2, whose reader checks the rest.

    In version 1 every module of a block had the block's number of experts, budgets were totals of
    experts that were met exactly, and options stood beside the strategy's name.

    Args:
        document: The decoded JSON.

    Raises:
        PlanError: If it is no plan of version 1; names the key.
    """
    data = read_object(document, "", _KEYS)
    budget = read_object(data["budget"], "budget", ("total_experts", "min_experts", "max_experts"))
    check_object(data["strategy"], "strategy")
    options = {key: value for key, value in data["strategy"].items() if key != "name"}
    modules = []
    for position, row in enumerate(read_list(data["modules"], "modules")):
        check_object(row, f"modules[{position}]")
        modules.append({**row, "rank": data["rank"], "sensitivity": None})
    rest = {key: data[key] for key in _KEYS if key not in ("blocks", "budget", "modules")}
    return {
        **rest,
        "version": 2,
        "strategy": {
            "name": data["strategy"].get("name"),
            "package": "axolotl-alphalora 0.1.0",
            "options": options,
        },
        "sample": None,
        "budget": {
            "kind": "total_experts",
            "asked": budget["total_experts"],
            "spent": data["total_experts"],
            "unspent": 0,
            "min_experts": budget["min_experts"],
            "max_experts": budget["max_experts"],
            "optimizer": None,
        },
        "spend": "experts",
        "module_experts": sum(_number(row) for row in modules),
        "units": data["blocks"],
        "modules": modules,
    }


def _number(row: Mapping[str, Any]) -> int:
    """Return a module's experts; the reader complains about anything else."""
    experts = row.get("experts")
    return experts if isinstance(experts, int) else 0
