"""An allocation strategy: more experts where layers are wider."""

from statistics import fmean
from typing import Literal

from pydantic import Field

from axolotl_alphalora.allocation import Options, Problem, Strategy, hookimpl


class WidthOptions(Options):
    granularity: Literal["group", "module"] = Field("module", description="what shares a number")
    power: float = Field(1.0, ge=0, description="experts in proportion to width ** power")


@hookimpl
def register_strategy() -> Strategy:
    return Strategy("width", "more experts where layers are wider", WidthOptions)


@hookimpl
def score(problem: Problem) -> dict[str, float]:
    return {
        unit: fmean(min(problem.shapes[name]) for name in names) ** problem.options.power
        for unit, names in problem.units.items()
    }
