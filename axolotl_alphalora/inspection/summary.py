"""All that was found of a trained adapter: what its experts have learnt and its routers do.

How that is described, as JSON too, is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..blocks import group_by_block
from .files import AdapterConfig, read_config
from .tasks import distance, specialisation
from .weights import ModuleExperts, read_experts

if TYPE_CHECKING:
    from ..adapter.usage import RouterUsage
    from ..progress import Progress


ALL = "all"
"""Key of the usage over all of the data; the others are tasks."""

Usage = Mapping[str, Mapping[str, "RouterUsage"]]
"""Task, or `ALL`, to module name to what its router decided."""


@dataclass(frozen=True)
class RoutingSummary:
    """Some routers in a few numbers, each the mean over routers unless it says otherwise.

    Load and dead experts are those of routers that choose: with k of k experts there is nothing to
    be uneven, and they are None if no router chooses.

    Attributes:
        routers: Number of routers.
        entropy: Entropy of a token's distribution over the experts, divided by ln N.
        top_gate: Largest gate of a token.
        load_cv: Coefficient of variation of the experts' token shares.
        load_max: Largest token share in units of the mean share.
        dead: Number of experts with less than a tenth of the fair share.
        specialisation: See `specialisation`; None with fewer than two tasks.
    """

    routers: int
    entropy: float
    top_gate: float
    load_cv: float | None
    load_max: float | None
    dead: int | None
    specialisation: float | None

    @classmethod
    def of(
        cls, usages: Sequence[RouterUsage], by_task: Sequence[Sequence[RouterUsage]] = ()
    ) -> RoutingSummary | None:
        """Summarise routers; None if there are none.

        Args:
            usages: What each router decided.
            by_task: For each of them what it decided for each task.
        """
        if not usages:
            return None
        choosing = [usage for usage in usages if usage.chooses]
        found = [value for tasks in by_task if (value := specialisation(tasks)) is not None]
        return cls(
            routers=len(usages),
            entropy=fmean(usage.entropy for usage in usages),
            top_gate=fmean(usage.top_gate for usage in usages),
            load_cv=fmean(usage.load_cv for usage in choosing) if choosing else None,
            load_max=fmean(usage.load_max for usage in choosing) if choosing else None,
            dead=sum(len(usage.dead) for usage in choosing) if choosing else None,
            specialisation=fmean(found) if found else None,
        )


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
    """One block of an inspection.

    Attributes:
        name: Decoder block, such as `model.layers.0`.
        experts: Mean number of experts of its modules.
        ranks: The ranks that its experts have.
        mean_norm: Mean over its experts.
        mean_effective_rank: Mean over its experts.
        redundancy: Mean over its modules with several experts, None without any.
        max_cosine: Largest absolute cosine of two experts, None without a pair.
        routing: Of its routers on all of the data, None without data or router.
    """

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
    """One task of an inspection.

    Attributes:
        name: The task, as the data names it.
        tokens: Tokens of a router.
        distance: Part of its tokens for which the experts differ from the tasks' mean: a mean over
            routers.
        routing: Of all routers on this task.
    """

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
        """Sum over the blocks of the mean number of their modules, as a plan counts if it cuts
        none.
        """
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

    def chooses(self, module: ModuleExperts) -> bool:
        """Whether a token uses some of a module's experts, and not all."""
        mixture, number = self.config.mixture, len(module.experts)
        return mixture.active(number // mixture.segments) < number

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
    progress: Progress | None = None,
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
