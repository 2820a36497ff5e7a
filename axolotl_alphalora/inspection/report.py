"""All that an inspection found, and its numbers as one JSON object.

========================================== =====================================================
``format``                                 ``"axolotl-alphalora-inspection"``
``version``                                1
``adapter.base_model``                     directory or repository id, or null
``adapter.rank``                           rank of an expert, where no module has its own
``adapter.top_k``                          experts of a token, where there are as many
``adapter.lora_alpha``, ``.use_rslora``    what experts are scaled with
``adapter.strategy``                       ``name`` and ``options`` that shared out the experts,
                                           or null if the adapter records no plan
``adapter.blocks``, ``.modules``           number of adapted blocks and modules
``adapter.total_experts``                  sum over the blocks of the mean number of their
                                           modules, as in a plan
``adapter.module_experts``                 sum over the modules
``adapter.parameters``                     parameters of all experts and routers
``data``                                   null, or ``source``, ``tokens`` and ``rows``: task to
                                           number of rows
``redundancy``                             mean over the modules with several experts, or null
``routing``                                of all routers on all of the data, or null
``blocks[].name``                          decoder block, such as ``model.layers.0``
``blocks[].experts``                       mean number of experts of its modules
``blocks[].ranks``                         the ranks that its experts have
``blocks[].mean_norm``                     mean over its experts, as is ``mean_effective_rank``
``blocks[].redundancy``                    mean over its modules with several experts, or null
``blocks[].max_cosine``                    largest absolute cosine of two experts, or null
``blocks[].routing``                       of its routers on all of the data, or null
``modules[].name``                         exact name of the linear layer in the model
``modules[].shape``                        its output and input features
``modules[].rank``, ``.scaling``           of each of its experts
``modules[].parameters``                   parameters of its experts and its router
``modules[].mean_norm``                    mean over its experts, as is ``mean_effective_rank``
``modules[].redundancy``                   mean absolute cosine of its pairs of experts, or null
``modules[].max_cosine``, ``.closest``     the largest one and the two experts' numbers, or null
``modules[].cosine``                       a row for each expert; null with an expert that is zero
``modules[].experts[].norm``               Frobenius norm of ``scaling * B A``
``modules[].experts[].effective_rank``     0 for an expert that is zero
``modules[].experts[].singular_values``    the largest first
``modules[].usage``                        null, or task (``"all"`` is all of the data) to
                                           ``tokens``, ``top_k``, ``token_share``, ``mean_gates``,
                                           ``entropy``, ``top_gate``, ``load_cv``, ``load_max``
                                           and ``dead``, the numbers of the dead experts
``modules[].specialisation``               between 0 and 1; null with fewer than two tasks
``tasks[].name``, ``.tokens``              a task of the data; tokens of a router
``tasks[].distance``                       part of its tokens for which the experts differ from
                                           the tasks' mean: a mean over routers
``tasks[].routing``                        of all routers on this task
========================================== =====================================================

A ``routing`` holds the fields of :class:`~axolotl_alphalora.inspection.RoutingSummary`. Experts are
numbered from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..blocks import group_by_block
from .files import AdapterConfig, read_config
from .routing import ALL, RoutingSummary, Usage, distance, specialisation
from .weights import ModuleExperts, read_experts

if TYPE_CHECKING:
    from ..adapter.usage import RouterUsage

__all__ = [
    "FORMAT",
    "VERSION",
    "BlockSummary",
    "Inspection",
    "InspectedData",
    "TaskSummary",
    "inspect_weights",
]

FORMAT = "axolotl-alphalora-inspection"
VERSION = 1


@dataclass(frozen=True)
class InspectedData:
    """The data that routers were watched on.

    Attributes:
        source: Where it is from: a file, or a YAML.
        tokens: Tokens that every router saw.
        rows: Task to number of rows; one entry if the data names no tasks.
    """

    source: str
    tokens: int
    rows: Mapping[str, int]


@dataclass(frozen=True)
class BlockSummary:
    """One block of an inspection; the module docstring describes each field."""

    name: str
    experts: float
    ranks: tuple[int, ...]
    mean_norm: float
    mean_effective_rank: float
    redundancy: float | None
    max_cosine: float | None
    routing: RoutingSummary | None


@dataclass(frozen=True)
class TaskSummary:
    """One task of an inspection; the module docstring describes each field."""

    name: str
    tokens: int
    distance: float
    routing: RoutingSummary


@dataclass(frozen=True)
class Inspection:
    """What was found of an adapter.

    Attributes:
        config: What its configuration says.
        modules: Its experts, in depth order.
        usage: What its routers decided: `ALL` and perhaps tasks, each to exact module name (without
            the adapter's name) to usage; None if no data was read.
        data: The data; None without usage.

    Raises:
        ValueError: If usage is not of this adapter's routers, or lacks `ALL`.
    """

    config: AdapterConfig
    modules: tuple[ModuleExperts, ...]
    usage: Usage | None = None
    data: InspectedData | None = None

    def __post_init__(self) -> None:
        if self.usage is None:
            return
        if ALL not in self.usage:
            raise ValueError(f"usage lacks {ALL!r}, what routers decided over all of the data")
        numbers = {row.name: len(row.experts) for row in self.modules if row.routed}
        for routers in self.usage.values():
            for name, usage in routers.items():
                if len(usage.token_share) != numbers.get(name):
                    raise ValueError(f"usage of {name} is not of this adapter's router")

    @property
    def total_experts(self) -> float:
        """Sum over the blocks of the mean number of their modules, as a plan counts."""
        return round(sum(block.experts for block in self.blocks), 6)

    @property
    def module_experts(self) -> int:
        """Experts, summed over the modules."""
        return sum(len(row.experts) for row in self.modules)

    @property
    def parameters(self) -> int:
        """Parameters of all experts and routers."""
        return sum(row.parameters for row in self.modules)

    @property
    def strategy(self) -> dict[str, Any] | None:
        """Name and options of what shared out the experts, if the adapter records its plan."""
        strategy = (self.config.plan or {}).get("strategy")
        return dict(strategy) if isinstance(strategy, Mapping) else None

    @property
    def redundancy(self) -> float | None:
        """Mean absolute cosine between the experts of a module, averaged over modules."""
        return _mean([row.redundancy for row in self.modules])

    @cached_property
    def by_block(self) -> dict[str, list[ModuleExperts]]:
        """Block name to its modules, in depth order."""
        rows = {row.name: row for row in self.modules}
        return {
            block: [rows[name] for name in names] for block, names in group_by_block(rows).items()
        }

    @cached_property
    def blocks(self) -> tuple[BlockSummary, ...]:
        """The blocks, in depth order."""
        return tuple(self._block(name, rows) for name, rows in self.by_block.items())

    @cached_property
    def tasks(self) -> tuple[TaskSummary, ...]:
        """The tasks of which a router saw a token, in the order of the data."""
        usage = self.usage or {}
        return tuple(self._task(name) for name, seen in usage.items() if name != ALL and seen)

    @property
    def routing(self) -> RoutingSummary | None:
        """All routers on all of the data; None without data."""
        return self.routing_of(self.modules)

    def usage_of(self, module: str) -> RouterUsage | None:
        """What a module's router decided over all of the data; None without data or router."""
        return self.usage[ALL].get(module) if self.usage is not None else None

    def task_usages(self, module: str) -> dict[str, RouterUsage]:
        """Task to what a module's router decided for it; tasks without a token are left out."""
        return {
            task: routers[module]
            for task, routers in (self.usage or {}).items()
            if task != ALL and module in routers
        }

    def task_distance(self, task: str, modules: Sequence[ModuleExperts]) -> float | None:
        """How far a task's choice of experts is from the tasks' mean, averaged over routers.

        Returns:
            Between 0 and 1; None if no router of these modules saw the task.
        """
        found = []
        for row in modules:
            usages = self.task_usages(row.name)
            if task in usages:
                found.append(distance(usages[task], list(usages.values())))
        return fmean(found) if found else None

    def routing_of(self, rows: Sequence[ModuleExperts]) -> RoutingSummary | None:
        """Summarise the routers of some modules on all of the data; None if none saw a token."""
        usages = {row.name: usage for row in rows if (usage := self.usage_of(row.name))}
        by_task = [list(self.task_usages(name).values()) for name in usages]
        return RoutingSummary.of(list(usages.values()), by_task)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON values; the module docstring describes each field."""
        config = self.config
        return {
            "format": FORMAT,
            "version": VERSION,
            "adapter": {
                "base_model": config.base_model,
                "rank": config.rank,
                "top_k": config.top_k,
                "lora_alpha": config.lora_alpha,
                "use_rslora": config.use_rslora,
                "strategy": self.strategy,
                "blocks": len(self.blocks),
                "modules": len(self.modules),
                "total_experts": self.total_experts,
                "module_experts": self.module_experts,
                "parameters": self.parameters,
            },
            "data": None if self.data is None else asdict(self.data),
            "redundancy": self.redundancy,
            "routing": None if self.routing is None else asdict(self.routing),
            "blocks": [asdict(block) for block in self.blocks],
            "modules": [self._module(row) for row in self.modules],
            "tasks": [asdict(task) for task in self.tasks],
        }

    def _module(self, row: ModuleExperts) -> dict[str, Any]:
        usages = {}
        if self.usage_of(row.name) is not None:
            usages = {ALL: self.usage_of(row.name), **self.task_usages(row.name)}
        return {
            "name": row.name,
            "shape": (row.out_features, row.in_features),
            "rank": row.rank,
            "scaling": row.scaling,
            "parameters": row.parameters,
            "mean_norm": row.mean_norm,
            "mean_effective_rank": row.mean_effective_rank,
            "redundancy": row.redundancy,
            "max_cosine": row.max_cosine,
            "closest": row.closest,
            "cosine": row.cosine,
            "experts": [asdict(expert) for expert in row.experts],
            "usage": {task: _usage(usage) for task, usage in usages.items() if usage} or None,
            "specialisation": specialisation(list(self.task_usages(row.name).values())),
        }

    def _block(self, name: str, rows: Sequence[ModuleExperts]) -> BlockSummary:
        experts = [expert for row in rows for expert in row.experts]
        return BlockSummary(
            name=name,
            experts=fmean(len(row.experts) for row in rows),
            ranks=tuple(sorted({row.rank for row in rows})),
            mean_norm=fmean(expert.norm for expert in experts),
            mean_effective_rank=fmean(expert.effective_rank for expert in experts),
            redundancy=_mean([row.redundancy for row in rows]),
            max_cosine=max(
                (row.max_cosine for row in rows if row.max_cosine is not None), default=None
            ),
            routing=self.routing_of(rows),
        )

    def _task(self, name: str) -> TaskSummary:
        assert self.usage is not None
        routers = list(self.usage[name].values())
        routing = RoutingSummary.of(routers)
        assert routing is not None
        return TaskSummary(
            name=name,
            tokens=max(usage.tokens for usage in routers),
            distance=self.task_distance(name, self.modules) or 0.0,
            routing=routing,
        )


def inspect_weights(
    adapter_dir: str | Path,
    progress: Callable[[Sequence[str]], Callable[[str], None]] | None = None,
) -> Inspection:
    """Inspect the weights of a saved adapter, from its two files alone.

    Args:
        adapter_dir: Its directory.
        progress: Takes the modules' names; what it returns is called after each.

    Raises:
        ValueError: If it cannot be read; says why, and what to do.
    """
    return Inspection(read_config(adapter_dir), tuple(read_experts(adapter_dir, progress)))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _usage(usage: RouterUsage) -> dict[str, Any]:
    return {
        **asdict(usage),
        "load_cv": usage.load_cv,
        "load_max": usage.load_max,
        "dead": usage.dead,
    }
