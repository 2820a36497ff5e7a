"""The records of a plan, one for each part of its JSON, and what is wrong with one in words."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
    with_config,
)
from typing_extensions import TypedDict

from ..blocks import group_by_unit
from ..mixture import Mixture
from ..settings import Count, MatrixQuality, Number, QualitySettings

_MEASURED = tuple(field.name for field in fields(MatrixQuality))[2:]  # what it says of a matrix


class PlanError(ValueError):
    """A plan that cannot be used; the message names the key, and the file if there is one."""


def _amount(value: Any) -> float:
    """Check a number of at least 0; a whole one stays whole."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and abs(value) <= sys.float_info.max):
        raise ValueError(f"must be a finite number, not {shown(value)}")
    if value < 0:
        raise ValueError(f"must be at least 0, not {value:g}")
    return value


def check_spend(spend: str, mixture: Mixture, where: str = "") -> None:
    """Check that a mixture has the experts and routers that its shape speaks of.

    Args:
        spend: What numbers are spent on.
        mixture: The shape.
        where: What stands before the names of the options, such as `alphalora.`.

    Raises:
        ValueError: If they are spent on rank, and the shape is one of several experts; names it.
    """
    usual = Mixture()
    names = [
        f"{where}{name}"
        for name in ("segments", "router_rank", "share_a")
        if getattr(mixture, name) != getattr(usual, name)
    ]
    if spend == "rank" and names:
        raise ValueError(
            f"{where}spend: rank gives every layer one expert and no router, so that there is "
            f"nothing for {', '.join(names)} to shape: remove it, or set {where}spend: experts"
        )


Text = Annotated[str, Field(strict=True, min_length=1)]
Least0 = Annotated[int, Field(strict=True, ge=0)]
Amount = Annotated[int | float, PlainValidator(_amount)]


@with_config(ConfigDict(extra="forbid"))
class StrategyRecord(TypedDict):
    """The strategy that made a plan: its name, its package, and all options that it ran with."""

    name: Text
    package: Text
    options: dict[str, Any]


@with_config(ConfigDict(extra="forbid"))
class SampleRecord(TypedDict):
    """The training data that was measured on: task to samples, seed, digest."""

    tasks: dict[str, Count]
    seed: Least0
    digest: Text


@with_config(ConfigDict(extra="forbid"))
class BudgetRecord(TypedDict):
    """A budget as a plan records it: what was asked for and what was spent, in its own unit."""

    kind: Literal["total_experts", "total_parameters", "memory_mib"] | None
    asked: Amount | None
    spent: Amount | None
    unspent: Amount | None
    min_experts: Least0
    max_experts: Least0 | None
    optimizer: Text | None


class Record(BaseModel):
    """A part of a plan: frozen, and of the known keys alone."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class ModulePlan(Record):
    """What a plan says about one linear layer.

    Attributes:
        name: Exact name of the layer in the model.
        shape: Output features, input features of the layer as it is applied.
        experts: Number of experts; 0 means: leave the layer alone.
        rank: Rank of each of them.
        sensitivity: Task to the sum of squared gradients over its samples, None if not measured.
        explained: The share of the inputs' variance that the components of the first,
            second, ... expert explain, None if not measured. The file then leaves it out.
        quality: What the weight's spectrum says, None if it was not measured. The file has its
            fields beside the others, null if there are none.
    """

    name: Text
    shape: tuple[Count, Count]
    experts: Least0
    rank: Count
    sensitivity: dict[str, Number] | None = None
    explained: tuple[Number, ...] | None = None
    quality: MatrixQuality | None = None

    @model_validator(mode="before")
    @classmethod
    def _unfold(cls, data: Any) -> Any:
        """Gather what was measured from the keys of the file."""
        if not isinstance(data, dict) or "quality" in data or not set(_MEASURED) & set(data):
            return data
        rest = {key: value for key, value in data.items() if key not in _MEASURED}
        measured = {key: data[key] for key in _MEASURED if key in data}
        if len(measured) < len(_MEASURED) or any(v is not None for v in measured.values()):
            matrix = {"module": data.get("name"), "shape": data.get("shape")}
            rest["quality"] = matrix | measured
        return rest

    @model_serializer(mode="wrap")
    def _fold(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        row = serialize(self)
        if row["explained"] is None:  # older releases do not know the key
            del row["explained"]
        measured = row.pop("quality") or {}
        return row | {key: measured.get(key) for key in _MEASURED}


class UnitPlan(Record):
    """What a plan says about a unit: a decoder block, or a finer part of the model.

    Attributes:
        name: The unit's name.
        score: What spoke for giving it experts, None if nothing did.
        experts: Number of experts of each of its modules; their mean where they differ. Where
            numbers are spent on rank, the multiple of the plan's rank.
        interval: Where 95 % of the score's resamples lie, None if there were none.
    """

    name: Text
    score: Number | None
    experts: Amount
    interval: tuple[Number, Number] | None


def check_measuring(options: Mapping[str, Any], modules: Iterable[ModulePlan]) -> None:
    """Check that the options of a plan say how the alphas in it were measured.

    Raises:
        ValueError: If a value is none that is known; names the option.
    """
    if all(module.quality is None or module.quality.alpha is None for module in modules):
        return
    try:
        QualitySettings.from_options(options)
        group_by_unit((), options.get("granularity", "block"))
    except ValueError as error:
        raise ValueError(f"strategy.options: {error}") from error


_SAID = {
    "missing": "is missing",
    "extra_forbidden": "is not a key of a plan",
    "too_long": "has too many items: {shown}",
    "int_type": "must be an integer, not {shown}",
    "greater_than_equal": "must be an integer of at least {ge}, not {shown}",
    "float_type": "must be a finite number, not {shown}",
    "finite_number": "must be a finite number, not {shown}",
    "string_type": "must be a string that is not empty, not {shown}",
    "string_too_short": "must be a string that is not empty, not {shown}",
    "literal_error": "must be one of {choices}, not {shown}",
    "tuple_type": "must be an array, not {shown}",
    "bool_type": "must be true or false, not {shown}",
    "dict_type": "must be an object, not {shown}",
    "model_type": "must be an object, not {shown}",
}


def in_words(error: ValidationError) -> str:
    """The first thing that is wrong, by the path of its key."""
    item = error.errors()[0]
    parts = (part for part in item["loc"] if part != "quality")
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    context = item.get("ctx", {})
    choices = str(context.get("expected")).replace("'", "").replace(" or ", ", ")
    said = _SAID.get(item["type"], item["msg"].removeprefix("Value error, "))
    if item["type"] in _SAID:
        said = said.format(shown=shown(item["input"]), ge=context.get("ge"), choices=choices)
    return f"{path.removeprefix('.')} {said}".strip()


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
