"""The plan: how many experts every module gets, and why.

A plan is one JSON object. It is computed once and then read, never recomputed: the counts in it
are what an adapter is built from. Fields:

============================= ==================================================================
``format``                    ``"axolotl-alphalora-plan"``
``version``                   2; a reader refuses a newer one, and reads version 1
``base_model``                directory or repository id of the model
``weights``                   where the weights came from: ``source`` (``"safetensors"``,
                              ``"bin"``, ``"live"``, how a checkpoint that had to be loaded is
                              quantised, such as ``"gguf"``, or ``"none"`` if none were
                              measured), their ``dtype``, ``revision``, ``quantization`` (null
                              for full precision) and a ``digest`` of their values, or of the
                              files where they had to be loaded
``strategy``                  ``name``, the ``package`` that it is from, and all ``options``
                              that it ran with
``sample``                    the training data that sensitivities were measured on: ``tasks``
                              (name to number of samples), ``seed``, ``digest``; null if none
                              were
``budget``                    ``kind``: ``total_experts``, ``total_parameters``, ``memory_mib``
                              or null; ``asked``, ``spent`` and ``unspent`` in its unit;
                              ``min_experts`` and ``max_experts`` of a module, null for no
                              bound; the ``optimizer`` that a memory budget counts, or null
``spend``                     ``"experts"``, or ``"rank"``: modules with one expert of N times
                              the rank
``top_k``                     experts that a token is sent to, where there are as many
``rank``                      LoRA rank of an expert
``total_experts``             sum over the blocks of the mean number of their modules
``module_experts``            sum over the modules
``trainable_parameters``      parameters of all experts and routers
``units[].name``              decoder block, such as ``model.layers.0``, or a finer unit
``units[].score``             the score that the strategy used, null if it used none
``units[].experts``           experts of each module of the unit, their mean if they differ
``units[].interval``          where 95 % of the score's resamples lie, or null
``modules[].name``            exact name of the linear layer in the model
``modules[].shape``           output features, input features of the layer as it is applied,
                              whatever the layout of its weight
``modules[].experts``         its experts; 0 means: leave the layer alone
``modules[].rank``            rank of each of its experts
``modules[].sensitivity``     task to the sum of squared gradients, or null
``modules[].alpha``           power-law exponent of its spectrum, null if not measured
``modules[].x_min``           eigenvalue at which the fitted tail starts, or null
``modules[].distance``        Kolmogorov-Smirnov distance of the fit, or null
``modules[].tail_size``       number of eigenvalues in the tail, or null
``modules[].num_eigenvalues`` number of eigenvalues, or null
``modules[].numerical_rank``  number of them above round-off, or null
``modules[].note``            what is out of the ordinary about the spectrum, or null
============================= ==================================================================

With ``spend: rank`` every number N of experts is spent on rank: a module has one expert of rank
N times ``rank``, and counts as N in ``units[].experts``, ``total_experts`` and ``module_experts``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from axolotl_alphalora.allocation.consistency import check_consistency
from axolotl_alphalora.allocation.parameters import expert_parameters
from axolotl_alphalora.allocation.reading import (
    PlanError,
    check_object,
    read_choice,
    read_count,
    read_list,
    read_number,
    read_object,
    read_text,
)
from axolotl_alphalora.allocation.rows import ModulePlan, UnitPlan, read_module, read_unit
from axolotl_alphalora.blocks import group_by_block
from axolotl_alphalora.files import expanded, write_whole

__all__ = ["FORMAT", "VERSION", "ModulePlan", "Plan", "UnitPlan"]

FORMAT = "axolotl-alphalora-plan"
VERSION = 2

_KEYS = (
    "format version base_model weights strategy sample budget spend top_k rank total_experts "
    "module_experts trainable_parameters units modules"
).split()
_BUDGETS = ("total_experts", "total_parameters", "memory_mib")


@dataclass(frozen=True)
class Plan:
    """How many experts every module gets; the module docstring describes each field."""

    base_model: str
    weights: dict[str, Any]
    strategy: dict[str, Any]
    budget: dict[str, Any]
    top_k: int
    rank: int
    units: tuple[UnitPlan, ...]
    modules: tuple[ModulePlan, ...]
    spend: str = "experts"
    sample: dict[str, Any] | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Exact module name to number of experts, modules left alone (0) included."""
        return {module.name: module.experts for module in self.modules}

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
    def block_numbers(self) -> dict[str, float]:
        """Decoder block to the mean number of its modules, blocks in order."""
        numbers = self.numbers
        return {
            block: _plain(Fraction(sum(numbers[name] for name in names), len(names)))
            for block, names in group_by_block(numbers).items()
        }

    @property
    def total_experts(self) -> float:
        """Sum over the blocks of the mean number of their modules."""
        numbers = self.numbers
        means = (
            Fraction(sum(numbers[name] for name in names), len(names))
            for names in group_by_block(numbers).values()
        )
        return _plain(sum(means, Fraction()))

    @property
    def module_experts(self) -> int:
        """Sum of the modules' numbers."""
        return sum(self.numbers.values())

    @property
    def trainable_parameters(self) -> int:
        """Parameters of all experts and routers."""
        return sum(
            expert_parameters(module.shape[1], module.shape[0], module.experts, module.rank)
            for module in self.modules
        )

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
        return {
            "format": FORMAT,
            "version": VERSION,
            "base_model": self.base_model,
            "weights": deepcopy(self.weights),
            "strategy": deepcopy(self.strategy),
            "sample": deepcopy(self.sample),
            "budget": deepcopy(self.budget),
            "spend": self.spend,
            "top_k": self.top_k,
            "rank": self.rank,
            "total_experts": self.total_experts,
            "module_experts": self.module_experts,
            "trainable_parameters": self.trainable_parameters,
            "units": [
                {**asdict(u), "interval": u.interval and list(u.interval)} for u in self.units
            ],
            "modules": [{**asdict(m), "shape": list(m.shape)} for m in self.modules],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Plan:
        """Read a plan from its JSON object.

        Raises:
            PlanError: If the format or version is another one, a key is missing, unknown or of a
                wrong type, a count is negative, a module or unit is listed twice, or a rank, a
                unit or a total does not follow from the rest. The message names the key's path.
        """
        check_object(document, "")
        _check_format(document)
        if document["version"] == 1:
            from axolotl_alphalora.allocation.version1 import upgraded

            document = upgraded(document)
        data = read_object(document, "", _KEYS)
        units = [
            read_unit(row, f"units[{i}]") for i, row in enumerate(read_list(data["units"], "units"))
        ]
        modules = [
            read_module(row, f"modules[{i}]")
            for i, row in enumerate(read_list(data["modules"], "modules"))
        ]
        _refuse_repeats([unit.name for unit in units], "units")
        _refuse_repeats([module.name for module in modules], "modules")
        plan = cls(
            base_model=read_text(data["base_model"], "base_model"),
            weights=_described(data["weights"], "weights", "source"),
            strategy=_strategy(data["strategy"]),
            sample=_sample(data["sample"]),
            budget=_budget(data["budget"]),
            spend=read_choice(data["spend"], "spend", ("experts", "rank")),
            top_k=read_count(data["top_k"], "top_k", 1),
            rank=read_count(data["rank"], "rank", 1),
            units=tuple(units),
            modules=tuple(modules),
        )
        check_consistency(plan, data)
        return plan

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all.

        Directories on the way are made. A file that is already there is replaced.

        Args:
            path: The file.

        Raises:
            ValueError: If a number in the plan is NaN or infinite.
            OSError: If the file cannot be written.
        """
        path = Path(path)
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that :meth:`save` wrote.

        Args:
            path: The file; `~` is the home directory.

        Raises:
            PlanError: If the file cannot be read, is not JSON or is not a plan. The message names
                the file and the key.
        """
        try:
            document = json.loads(Path(expanded(path)).read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError(f"cannot read the plan {path}: {error.strerror}") from error
        except ValueError as error:
            raise PlanError(f"{path} is not JSON: {error}") from error
        try:
            return cls.from_dict(document)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error


def _check_format(document: Mapping[str, Any]) -> None:
    if document.get("format") != FORMAT:
        raise PlanError(f"format is {document.get('format')!r}, not {FORMAT!r}: this is no plan")
    version = read_count(document.get("version"), "version", 1)
    if version > VERSION:
        raise PlanError(
            f"version is {version}, but this axolotl-alphalora reads plans up to version "
            f"{VERSION}: upgrade axolotl-alphalora"
        )


def _described(value: Any, path: str, required: str) -> dict[str, Any]:
    """Return an object of free keys with string, number, boolean or null values."""
    check_object(value, path)
    if required not in value:
        raise PlanError(f"{path}.{required} is missing")
    read_text(value[required], f"{path}.{required}")
    for key, item in value.items():
        if isinstance(item, dict | list):
            raise PlanError(f"{path}.{key} must be a string, number, boolean or null")
        if isinstance(item, float):
            read_number(item, f"{path}.{key}")
    return dict(value)


def _strategy(value: Any) -> dict[str, Any]:
    strategy = read_object(value, "strategy", ("name", "package", "options"))
    for key in ("name", "package"):
        read_text(strategy[key], f"strategy.{key}")
    check_object(strategy["options"], "strategy.options")
    return deepcopy(strategy)


def _sample(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    sample = read_object(value, "sample", ("tasks", "seed", "digest"))
    check_object(sample["tasks"], "sample.tasks")
    for task, number in sample["tasks"].items():
        read_count(number, f"sample.tasks.{task}", 1)
    read_count(sample["seed"], "sample.seed")
    read_text(sample["digest"], "sample.digest")
    return deepcopy(sample)


def _budget(value: Any) -> dict[str, Any]:
    keys = ("kind", "asked", "spent", "unspent", "min_experts", "max_experts", "optimizer")
    budget = read_object(value, "budget", keys)
    if budget["kind"] is not None:
        read_choice(budget["kind"], "budget.kind", _BUDGETS)
        for key in ("asked", "spent", "unspent"):
            read_number(budget[key], f"budget.{key}")
    read_count(budget["min_experts"], "budget.min_experts")
    if budget["max_experts"] is not None:
        read_count(budget["max_experts"], "budget.max_experts")
    if budget["optimizer"] is not None:
        read_text(budget["optimizer"], "budget.optimizer")
    return dict(budget)


def _plain(value: Fraction) -> float:
    """Return an integer where there is one."""
    return value.numerator if value.denominator == 1 else float(value)


def _refuse_repeats(names: list[str], path: str) -> None:
    seen = set()
    for position, name in enumerate(names):
        if name in seen:
            raise PlanError(f"{path}[{position}].name {name!r} is listed twice")
        seen.add(name)
