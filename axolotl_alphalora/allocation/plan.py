"""The plan: how many experts every module gets, and why.

A plan is one JSON object. It is computed once and then read, never recomputed: the counts in it
are what an adapter is built from. Fields:

============================= ==================================================================
`format`                    `"axolotl-alphalora-plan"`
`version`                   2; a reader refuses any other
`base_model`                directory or repository id of the model
`weights`                   where the weights came from: `source` (`"safetensors"`,
                              `"bin"`, `"live"`, how a checkpoint that had to be loaded is
                              quantised, such as `"gguf"`, or `"none"` if none were
                              measured), their `dtype`, `revision`, `quantization` (null
                              for full precision) and a `digest` of their values, or of the
                              files where they had to be loaded
`strategy`                  `name`, the `package` that it is from, and all `options`
                              that it ran with; `order` (and `order_seed`) among them only
                              where the plan is a control, whose numbers are not by the scores
`sample`                    the training data that sensitivities or explained variances were
                              measured on: `tasks` (name to number of samples), `seed`,
                              `digest`; null if none were
`budget`                    `kind`: `total_experts`, `total_parameters`, `memory_mib`
                              or null; `asked`, `spent` and `unspent` in its unit;
                              `min_experts` and `max_experts` of a module, null for no
                              bound; the `optimizer` that a memory budget counts, or null
`spend`                     `"experts"`, or `"rank"`: modules with one expert of N times
                              the rank
`top_k`                     experts that a token is sent to, where there are as many; below 1
                              the share of a layer's experts
`segments`                  parts that every expert is cut into: a layer holds that many times
                              its experts, each of a part of their rank, and as many times more
                              are active
`router_rank`               rank of the routers, null for full ones
`share_a`                   whether the experts of a layer share one A
`rank`                      LoRA rank of an expert, before it is cut
`total_experts`             sum over the blocks of the mean number of their modules
`module_experts`            sum over the modules
`trainable_parameters`      parameters of all experts and routers
`units[].name`              decoder block, such as `model.layers.0`, or a finer unit
`units[].score`             the score that the strategy used, null if it used none
`units[].experts`           experts of each module of the unit, their mean if they differ
`units[].interval`          where 95 % of the score's resamples lie, or null
`modules[].name`            exact name of the linear layer in the model
`modules[].shape`           output features, input features of the layer as it is applied,
                              whatever the layout of its weight
`modules[].experts`         its experts; 0 means: leave the layer alone
`modules[].rank`            rank of each of its experts, before they are cut
`modules[].sensitivity`     task to the sum of squared gradients, or null
`modules[].explained`       the share of the inputs' variance that the components of its
                              first, second, ... expert explain; only where it was measured
`modules[].alpha`           power-law exponent of its spectrum, null if not measured
`modules[].x_min`           eigenvalue at which the fitted tail starts, or null
`modules[].distance`        Kolmogorov-Smirnov distance of the fit, or null
`modules[].tail_size`       number of eigenvalues in the tail, or null
`modules[].num_eigenvalues` number of eigenvalues, or null
`modules[].numerical_rank`  number of them above round-off, or null
`modules[].note`            what is out of the ordinary about the spectrum, or null
============================= ==================================================================

With `spend: rank` every number N of experts is spent on rank: a module has one expert of rank
N times `rank`, and counts as N in `units[].experts`, `total_experts` and `module_experts`.

Plans of older releases lack `segments`, `router_rank` and `share_a`: 1, null and false.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import StrictBool, ValidationError, model_validator

from ..blocks import GRANULARITIES, group_by_block, group_by_unit
from ..files import expanded, parse_json, write_whole
from ..mixture import Mixture
from ..settings import Count
from .budget import whole_if_exact
from .records import (
    Amount,
    BudgetRecord,
    ModulePlan,
    PlanError,
    Record,
    SampleRecord,
    StrategyRecord,
    Text,
    UnitPlan,
    check_measuring,
    check_spend,
    in_words,
    shown,
)
from .strategy import CONTROLS

FORMAT = "axolotl-alphalora-plan"
VERSION = 2

_TOTALS = ("total_experts", "module_experts", "trainable_parameters")
_EDITED = "the plan has been edited; write it anew"


class Plan(Record):
    """How many experts every module gets; the module docstring describes each field.

    Raises:
        pydantic.ValidationError: If a value is of a wrong type, a module or unit is listed twice,
            or a rank or a unit does not follow from the rest.
    """

    base_model: Text
    weights: dict[str, Any]
    strategy: StrategyRecord
    sample: SampleRecord | None = None
    budget: BudgetRecord
    spend: Literal["experts", "rank"] = "experts"
    top_k: Amount
    segments: Count = 1
    router_rank: Count | None = None
    share_a: StrictBool = False
    rank: Count
    units: tuple[UnitPlan, ...]
    modules: tuple[ModulePlan, ...]

    @property
    def mixture(self) -> Mixture:
        """What a mixture looks like in a layer."""
        return Mixture(self.top_k, self.segments, self.router_rank, self.share_a)

    @property
    def counts(self) -> dict[str, int]:
        """Exact module name to number of experts, modules left alone (0) included."""
        return {module.name: module.experts for module in self.modules}

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Exact module name to output features and input features, in the model's order."""
        return {module.name: module.shape for module in self.modules}

    @property
    def rank_pattern(self) -> dict[str, int]:
        """Exact module name to rank of its experts, where that is not the plan's rank."""
        return {
            module.name: module.rank
            for module in self.modules
            if module.experts and module.rank != self.rank
        }

    @property
    def numbers(self) -> dict[str, int]:
        """Exact module name to the number that the strategy gave it, spent on experts or rank."""
        return {module.name: module.experts * module.rank // self.rank for module in self.modules}

    @property
    def control(self) -> str | None:
        """`opposite` or `shuffled` where the numbers are not by the scores, None otherwise."""
        order = self.strategy["options"].get("order")
        return order if order in CONTROLS else None

    @property
    def members(self) -> dict[str, list[str]]:
        """Unit name to the names of its modules; empty if the units are none of these modules'."""
        listed = [unit.name for unit in self.units]
        grouped = (group_by_unit(self.counts, granularity) for granularity in GRANULARITIES)
        return next((found for found in grouped if list(found) == listed), {})

    @property
    def block_numbers(self) -> dict[str, float]:
        """Decoder block to the mean number of its modules, blocks in order."""
        return {block: whole_if_exact(mean) for block, mean in self._block_means().items()}

    @property
    def total_experts(self) -> float:
        """Sum over the blocks of the mean number of their modules."""
        return whole_if_exact(sum(self._block_means().values(), Fraction()))

    @property
    def module_experts(self) -> int:
        """Sum of the modules' numbers."""
        return sum(self.numbers.values())

    @property
    def trainable_parameters(self) -> int:
        """Parameters of all experts and routers."""
        return sum(self.parameters_of(module) for module in self.modules)

    def parameters_of(self, module: ModulePlan) -> int:
        """Trainable parameters of a module's experts and its router."""
        out_features, in_features = module.shape
        return self.mixture.parameters(in_features, out_features, module.experts, module.rank)

    def differences(self, counts: Mapping[str, int]) -> str | None:
        """Return a sentence about the first module whose count differs, None if none does.

        Args:
            counts: Exact module name to number of experts. A module that is missing has none.
        """
        planned = self.counts
        for name in [*planned, *(name for name in counts if name not in planned)]:
            expected, found = planned.get(name, 0), counts.get(name, 0)
            if expected != found:
                return f"module {name!r} has {expected} experts in the plan, but {found} here"
        return None

    def number_differences(self, other: Plan) -> str | None:
        """Return a sentence about the first module that another plan gives another number."""
        numbers, others = self.numbers, other.numbers
        for name in [*numbers, *(name for name in others if name not in numbers)]:
            if numbers.get(name) != others.get(name):
                return f"{name} gets {numbers.get(name)} there, and {others.get(name)} here"
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as the JSON object described in the module docstring."""
        said = self.model_dump(mode="json")
        rows = {key: said.pop(key) for key in ("units", "modules")}
        totals = {key: getattr(self, key) for key in _TOTALS}
        return {"format": FORMAT, "version": VERSION, **said, **totals, **rows}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Read a plan from its JSON object.

        Raises:
            PlanError: If the format or version is another one, a key is missing, unknown or of a
                wrong type, a count is negative, a module or unit is listed twice, or a rank, a
                unit or a total does not follow from the rest. The message names the key's path.
        """
        if not isinstance(document, dict):
            raise PlanError(f"the document must be an object, not {shown(document)}")
        data = deepcopy(document)
        kind, version = data.pop("format", None), data.pop("version", None)
        if kind != FORMAT:
            raise PlanError(f"format is {kind!r}, not {FORMAT!r}: this is no plan")
        if version != VERSION:
            newer = isinstance(version, int) and version > VERSION
            raise PlanError(
                f"version is {version!r}, but this axolotl-alphalora reads plans of version "
                f"{VERSION}: " + ("upgrade axolotl-alphalora" if newer else _EDITED)
            )
        totals = {key: data.pop(key) for key in _TOTALS if key in data}
        try:
            plan = cls.model_validate(data)
        except ValidationError as error:
            raise PlanError(in_words(error)) from error
        except OverflowError as error:
            raise PlanError(f"a number in it is too large: {_EDITED}") from error
        for key in _TOTALS:
            if key not in totals:
                raise PlanError(f"{key} is missing")
            if totals[key] != getattr(plan, key):
                raise PlanError(
                    f"{key} is {totals[key]}, but the counts in the plan give "
                    f"{getattr(plan, key)}: {_EDITED}"
                )
        return plan

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all.

        Directories on the way are made. A file that is already there is replaced.

        Raises:
            ValueError: If a number in the plan is NaN or infinite.
            OSError: If the file cannot be written.
        """
        path = Path(path)
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        write_whole(path, text)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan that `save` wrote.

        Args:
            path: The file; `~` is the home directory.

        Raises:
            PlanError: If the file cannot be read, is not JSON or is not a plan. The message names
                the file and the key.
        """
        try:
            document = parse_json(Path(expanded(path)).read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError(f"cannot read the plan {path}: {error.strerror}") from error
        except ValueError as error:
            raise PlanError(
                f"{path} is not JSON, as `alphalora plan --output` saves a plan: {error}"
            ) from error
        try:
            return cls.from_dict(document)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error
        except RecursionError as error:
            raise PlanError(f"{path}: it is nested too deeply") from error

    def _block_means(self) -> dict[str, Fraction]:
        numbers = self.numbers
        return {
            block: Fraction(sum(numbers[name] for name in names), len(names))
            for block, names in group_by_block(numbers).items()
        }

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Check that the parts agree: a file may have been edited."""
        if not isinstance(self.weights.get("source"), str):
            raise ValueError("weights.source is missing: it says where the weights came from")
        self.mixture.check_rank(self.rank, "rank")
        check_measuring(self.strategy["options"], self.modules)
        check_spend(self.spend, self.mixture)
        for key in ("asked", "spent", "unspent"):
            if self.budget["kind"] is not None and self.budget[key] is None:
                raise ValueError(f"budget.{key} must be a finite number, not None")
        _refuse_repeats((unit.name for unit in self.units), "units")
        _refuse_repeats((module.name for module in self.modules), "modules")
        for i, module in enumerate(self.modules):
            fits = module.rank == self.rank
            if self.spend == "rank" and module.experts:
                fits = module.experts == 1 and module.rank % self.rank == 0
            if not fits:
                raise ValueError(
                    f"modules[{i}] has {module.experts} experts of rank {module.rank}, which is "
                    f"not how rank {self.rank} is spent on {self.spend}"
                )
        numbers, units = self.numbers, self.members
        if not units:
            raise ValueError(
                "units are neither the modules' blocks, nor parts of them, nor single modules: "
                f"{_EDITED}"
            )
        for i, unit in enumerate(self.units):
            mean = mean_number(numbers, units[unit.name])
            if unit.experts != mean:
                raise ValueError(
                    f"units[{i}].experts is {unit.experts}, but its modules have {mean:g}: "
                    f"{_EDITED}"
                )
        return self


def _refuse_repeats(names: Iterable[str], path: str) -> None:
    seen = set()
    for position, name in enumerate(names):
        if name in seen:
            raise ValueError(f"{path}[{position}].name {name!r} is listed twice")
        seen.add(name)


def mean_number(numbers: Mapping[str, int], names: Sequence[str]) -> float:
    """Return the mean number of some modules: exact where it is whole."""
    return whole_if_exact(Fraction(sum(numbers[name] for name in names), len(names)))
