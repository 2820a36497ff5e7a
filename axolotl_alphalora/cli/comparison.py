"""Several plans for one model, all of one budget, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ..allocation import Budget, Plan
from ..allocation.costs import Costs
from ..blocks import block_name
from ..planning import PlanRequest
from ..report.findings import Findings
from .budgets import common_budget, taken_budget
from .planner import Planner, shapes_of
from .source import Source
from .specs import AS_GIVEN, changed
from .stability import Stability, moved_experts, rank_correlation
from .variants import stabilities

if TYPE_CHECKING:
    from ..planning import Found

__all__ = ["Compared", "as_document", "changed_blocks", "compare_plans"]


@dataclass(frozen=True)
class Compared:
    """One plan of a comparison.

    Attributes:
        label: Its heading.
        plan: The plan.
        stability: How far it stays the same when its evidence varies: empty where it rests on
            none, None where that is not known, as for a saved plan.
        own: Whether it is the source's own plan.
    """

    label: str
    plan: Plan
    stability: tuple[Stability, ...] | None
    own: bool = False


def compare_plans(
    source: Source, specs: Sequence[str], planner: Planner, own_label: str = AS_GIVEN
) -> list[Compared]:
    """Make the plans of a comparison.

    The source's own plan comes first, unless a specification asks for the same; then the
    specifications in order. All have the source's budget. Where it has none, since its strategy has
    numbers of its own, the others get what its plan costs.

    Args:
        source: What is planned.
        specs: Specifications, see :func:`~axolotl_alphalora.cli.specs.read_spec`.
        planner: Makes the plans.
        own_label: Heading of the source's own plan.

    Raises:
        ValueError: If a specification is wrong, a plan cannot be made, or a strategy that takes no
            budget costs something else.
    """
    given = source.request
    requests = {spec: changed(given, spec) for spec in specs}
    for spec, request in requests.items():
        try:
            planner.check(request)
        except ValueError as error:
            raise ValueError(f"{spec}: {error}") from error
    same = [spec for spec, request in requests.items() if _is_same(request, given)]
    own, found = planner.settled(source)
    budget = common_budget(given.budget, own)
    columns = {} if same else {own_label: (own, found, given)}
    for spec, request in requests.items():
        if spec in same:
            columns[spec] = (own, found, given)
        else:
            wanted = replace(request, budget=taken_budget(request, budget))
            plan, measured = planner.plan(wanted)
            _check_cost(spec, wanted, plan, budget)
            columns[spec] = (plan, measured, wanted)
    return [
        Compared(label, plan, _stability(plan, measured, request, planner), own=plan is own)
        for label, (plan, measured, request) in columns.items()
    ]


def as_document(columns: Sequence[Compared]) -> dict[str, Any]:
    """Return a comparison as JSON values.

    Returns:
        ``columns``: for each its ``label``; ``rank_correlation`` of the modules' numbers with the
        first column's, null where a plan is constant; ``blocks_that_differ`` and
        ``experts_that_move`` against the first; ``stability``: a list of ``over``, ``plans``,
        ``rank_correlation`` and ``moved``, empty for a plan that rests on no evidence, null where
        it is not known; ``trust``; and the ``plan``. ``rank_correlations``: of all pairs.
    """
    first = columns[0].plan
    rows = []
    for column in columns:
        findings = Findings.of_plan(column.plan)
        known = column.stability
        rows.append(
            {
                "label": column.label,
                "rank_correlation": rank_correlation(first.numbers, column.plan.numbers),
                "blocks_that_differ": changed_blocks(column.plan, first),
                "experts_that_move": moved_experts(column.plan.numbers, first.numbers),
                "stability": None if known is None else [asdict(one) for one in known],
                "trust": findings.trust if findings else None,
                "plan": column.plan.to_dict(),
            }
        )
    return {
        "columns": rows,
        "rank_correlations": [
            [rank_correlation(one.plan.numbers, other.plan.numbers) for other in columns]
            for one in columns
        ],
    }


def changed_blocks(plan: Plan, other: Plan) -> int:
    """Return in how many blocks any module has another number."""
    numbers, others = plan.numbers, other.numbers
    return len({block_name(name) for name in numbers if numbers[name] != others[name]})


def _is_same(request: PlanRequest, given: PlanRequest) -> bool:
    return request.strategy == given.strategy and request.settings == given.settings


def _check_cost(spec: str, request: PlanRequest, plan: Plan, budget: Mapping[str, Any]) -> None:
    """Refuse a plan that took no budget and costs something else."""
    if request.settings.budget_use != "none":
        return
    shapes = shapes_of(plan)
    units = {name: [name] for name in shapes}
    limits = Budget(**budget)
    spend: Any = request.spend
    costs = Costs(shapes, units, request.rank, spend, limits, request.optimizer)
    assert costs.limit is not None
    spent = costs.total(plan.numbers)
    if spent != costs.limit:
        kind = "total_experts" if limits.kind == "experts_per_block" else limits.kind
        raise ValueError(
            f"{spec}: the plans of a comparison have one budget, {kind} "
            f"{costs.amount(costs.limit):,}, but {request.strategy} takes none and comes to "
            f"{costs.amount(spent):,}: change its numbers, or the budget"
        )


def _stability(
    plan: Plan, found: Found, request: PlanRequest, planner: Planner
) -> tuple[Stability, ...] | None:
    if request.needs == "nothing":
        return ()
    if found is None:
        return None
    return stabilities(plan, found, request, planner) or None
