"""The rows of a plan: one for each unit that shares a number, one for each linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from axolotl_alphalora.allocation.reading import (
    PlanError,
    check_object,
    read_count,
    read_list,
    read_number,
    read_object,
    read_text,
)

__all__ = ["ModulePlan", "UnitPlan", "read_module", "read_unit"]


@dataclass(frozen=True)
class ModulePlan:
    """What a plan says about one linear layer.

    Attributes:
        name: Exact name of the layer in the model.
        shape: Output features, input features of the layer as it is applied.
        experts: Number of experts; 0 means: leave the layer alone.
        rank: Rank of each of them.
        sensitivity: Task to the sum of squared gradients over its samples, None if not measured.
        alpha: Power-law exponent of the weight's spectrum, None if it was not measured; so for
            the next three.
        x_min: Eigenvalue at which the fitted tail starts.
        distance: Kolmogorov-Smirnov distance of the fit.
        tail_size: Number of eigenvalues in the tail.
        num_eigenvalues: Number of its eigenvalues.
        numerical_rank: Number of them above round-off.
        note: What is out of the ordinary about the spectrum, None if nothing is.
    """

    name: str
    shape: tuple[int, int]
    experts: int
    rank: int
    sensitivity: dict[str, float] | None = None
    alpha: float | None = None
    x_min: float | None = None
    distance: float | None = None
    tail_size: int | None = None
    num_eigenvalues: int | None = None
    numerical_rank: int | None = None
    note: str | None = None


@dataclass(frozen=True)
class UnitPlan:
    """What a plan says about a unit: a decoder block, or a finer part of the model.

    Attributes:
        name: The unit's name.
        score: What spoke for giving it experts, None if nothing did.
        experts: Number of experts of each of its modules; their mean where they differ. Where
            numbers are spent on rank, the multiple of the plan's rank.
        interval: Where 95 % of the score's resamples lie, None if there were none.
    """

    name: str
    score: float | None
    experts: float
    interval: tuple[float, float] | None = None


def read_unit(value: Any, path: str) -> UnitPlan:
    """Read a unit from decoded JSON at a key path, or raise PlanError."""
    data = read_object(value, path, ("name", "score", "experts", "interval"))
    interval = data["interval"]
    if interval is not None and len(read_list(interval, f"{path}.interval")) != 2:
        raise PlanError(f"{path}.interval must be two numbers or null, not {interval}")
    experts = read_number(data["experts"], f"{path}.experts")
    if experts < 0:
        raise PlanError(f"{path}.experts must be at least 0, not {experts:g}")
    return UnitPlan(
        name=read_text(data["name"], f"{path}.name"),
        score=_number_or_none(data, "score", path),
        experts=int(experts) if experts == int(experts) else experts,
        interval=interval and tuple(read_number(end, f"{path}.interval") for end in interval),
    )


def read_module(value: Any, path: str) -> ModulePlan:
    """Read a module from decoded JSON at a key path, or raise PlanError."""
    keys = tuple(field.name for field in fields(ModulePlan))
    data = read_object(value, path, keys)
    shape = read_list(data["shape"], f"{path}.shape")
    if len(shape) != 2:
        raise PlanError(f"{path}.shape must be output features and input features, not {shape}")
    outputs, inputs = (read_count(size, f"{path}.shape[{i}]", 1) for i, size in enumerate(shape))
    return ModulePlan(
        name=read_text(data["name"], f"{path}.name"),
        shape=(outputs, inputs),
        experts=read_count(data["experts"], f"{path}.experts"),
        rank=read_count(data["rank"], f"{path}.rank", 1),
        sensitivity=_sensitivity(data["sensitivity"], f"{path}.sensitivity"),
        alpha=_number_or_none(data, "alpha", path),
        x_min=_number_or_none(data, "x_min", path),
        distance=_number_or_none(data, "distance", path),
        tail_size=_count_or_none(data, "tail_size", path),
        num_eigenvalues=_count_or_none(data, "num_eigenvalues", path),
        numerical_rank=_count_or_none(data, "numerical_rank", path, least=0),
        note=None if data["note"] is None else read_text(data["note"], f"{path}.note"),
    )


def _sensitivity(value: Any, path: str) -> dict[str, float] | None:
    if value is None:
        return None
    check_object(value, path)
    return {task: read_number(number, f"{path}.{task}") for task, number in value.items()}


def _number_or_none(data: Mapping[str, Any], key: str, path: str) -> float | None:
    return None if data[key] is None else read_number(data[key], f"{path}.{key}")


def _count_or_none(data: Mapping[str, Any], key: str, path: str, least: int = 1) -> int | None:
    return None if data[key] is None else read_count(data[key], f"{path}.{key}", least)
