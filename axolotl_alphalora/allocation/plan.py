"""The plan: how many experts every module gets, and why.

A plan is one JSON object. It is computed once and then read, never recomputed: the counts in it
are what an adapter is built from. Fields:

===================================== ==========================================================
``format``                            ``"axolotl-alphalora-plan"``
``version``                           1; a reader refuses a newer one
``base_model``                        directory or repository id of the model
``weights``                           where the weights came from: ``source`` (``"safetensors"``,
                                      ``"bin"``, ``"live"``, or how a checkpoint that had to be
                                      loaded is quantised, such as ``"gguf"``), their ``dtype``,
                                      ``revision``, ``quantization`` (null for full precision) and
                                      a ``digest`` of their values, or of the files where they had
                                      to be loaded
``strategy``                          ``name``, and the options it ran with: ``estimator``,
                                      ``window``, ``aggregate``, ``normalize`` and ``beta`` for
                                      ``"alphalora"``
``budget``                            ``total_experts`` asked for (over blocks), ``min_experts``
                                      and ``max_experts`` of a block, null for no bound
``top_k``                             experts that a token is sent to, where there are as many
``rank``                              LoRA rank of every expert
``total_experts``                     sum over the blocks
``trainable_parameters``              parameters of all experts and routers
``blocks[].name``                     decoder block, such as ``model.layers.0``
``blocks[].score``                    the score that the strategy used, null if it used none
``blocks[].experts``                  experts of each module of the block
``blocks[].interval``                 where 95 % of the score's resamples lie, or null
``modules[].name``                    exact name of the linear layer in the model
``modules[].shape``                   output features, input features of the layer as it is
                                      applied, whatever the layout of its weight
``modules[].experts``                 its experts; 0 means: leave the layer alone
``modules[].alpha``                   power-law exponent of its spectrum, null if not measured
``modules[].x_min``                   eigenvalue at which the fitted tail starts, or null
``modules[].distance``                Kolmogorov-Smirnov distance of the fit, or null
``modules[].tail_size``               number of eigenvalues in the tail, or null
``modules[].num_eigenvalues``         number of eigenvalues, or null
``modules[].numerical_rank``          number of them above round-off, or null
``modules[].note``                    what is out of the ordinary about the spectrum, or null
===================================== ==========================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from axolotl_alphalora.allocation.parameters import expert_parameters
from axolotl_alphalora.allocation.reading import (
    PlanError,
    check_object,
    read_count,
    read_list,
    read_number,
    read_object,
    read_text,
)
from axolotl_alphalora.allocation.rows import BlockPlan, ModulePlan, read_block, read_module
from axolotl_alphalora.storage import write_whole

__all__ = ["FORMAT", "VERSION", "BlockPlan", "ModulePlan", "Plan"]

FORMAT = "axolotl-alphalora-plan"
VERSION = 1

_KEYS = (
    "format version base_model weights strategy budget top_k rank total_experts "
    "trainable_parameters blocks modules"
).split()


@dataclass(frozen=True)
class Plan:
    """How many experts every module gets; the module docstring describes each field."""

    base_model: str
    weights: dict[str, Any]
    strategy: dict[str, Any]
    budget: dict[str, Any]
    top_k: int
    rank: int
    blocks: tuple[BlockPlan, ...]
    modules: tuple[ModulePlan, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Exact module name to number of experts, modules left alone (0) included."""
        return {module.name: module.experts for module in self.modules}

    @property
    def total_experts(self) -> int:
        """Sum of the blocks' experts."""
        return sum(block.experts for block in self.blocks)

    @property
    def trainable_parameters(self) -> int:
        """Parameters of all experts and routers."""
        return sum(
            expert_parameters(module.shape[1], module.shape[0], module.experts, self.rank)
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

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as the JSON object described in the module docstring."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "base_model": self.base_model,
            "weights": dict(self.weights),
            "strategy": dict(self.strategy),
            "budget": dict(self.budget),
            "top_k": self.top_k,
            "rank": self.rank,
            "total_experts": self.total_experts,
            "trainable_parameters": self.trainable_parameters,
            "blocks": [
                {**asdict(b), "interval": b.interval and list(b.interval)} for b in self.blocks
            ],
            "modules": [{**asdict(m), "shape": list(m.shape)} for m in self.modules],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Plan:
        """Read a plan from its JSON object.

        Raises:
            PlanError: If the format or version is another one, a key is missing, unknown or of a
                wrong type, a count is negative, a module or block is listed twice, or a total
                does not follow from the rest. The message names the key's path.
        """
        check_object(document, "")
        _check_format(document)
        data = read_object(document, "", _KEYS)
        blocks = [
            read_block(row, f"blocks[{i}]")
            for i, row in enumerate(read_list(data["blocks"], "blocks"))
        ]
        modules = [
            read_module(row, f"modules[{i}]")
            for i, row in enumerate(read_list(data["modules"], "modules"))
        ]
        _refuse_repeats([block.name for block in blocks], "blocks")
        _refuse_repeats([module.name for module in modules], "modules")
        plan = cls(
            base_model=read_text(data["base_model"], "base_model"),
            weights=_described(data["weights"], "weights", "source"),
            strategy=_described(data["strategy"], "strategy", "name"),
            budget=_budget(data["budget"]),
            top_k=read_count(data["top_k"], "top_k", 1),
            rank=read_count(data["rank"], "rank", 1),
            blocks=tuple(blocks),
            modules=tuple(modules),
        )
        for key, computed in (
            ("total_experts", plan.total_experts),
            ("trainable_parameters", plan.trainable_parameters),
        ):
            if read_count(data[key], key) != computed:
                raise PlanError(
                    f"{key} is {data[key]}, but the counts in the plan give {computed}: "
                    "the plan has been edited; write it anew"
                )
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

        Raises:
            PlanError: If the file cannot be read, is not JSON or is not a plan. The message names
                the file and the key.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
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


def _budget(value: Any) -> dict[str, Any]:
    budget = read_object(value, "budget", ("total_experts", "min_experts", "max_experts"))
    for key in ("total_experts", "min_experts"):
        read_count(budget[key], f"budget.{key}")
    if budget["max_experts"] is not None:
        read_count(budget["max_experts"], "budget.max_experts")
    return dict(budget)


def _refuse_repeats(names: list[str], path: str) -> None:
    seen = set()
    for position, name in enumerate(names):
        if name in seen:
            raise PlanError(f"{path}[{position}].name {name!r} is listed twice")
        seen.add(name)
