"""Printing and drawing what `alphalora plan` made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..allocation import Plan, cautions
from ..planning import Compared, Planner, Source, compare_plans
from ..planning.specs import AS_GIVEN
from .compare import plans_as_document, print_plans
from .explain import WARNING, explain
from .findings import Findings
from .layout import print_lines
from .options import Wishes
from .scores import BlockScores
from .summary import summary

if TYPE_CHECKING:
    from ..planning import Measured
    from ..spectral import Spectra

__all__ = ["show_comparison", "show_plan"]


def show_plan(
    source: Source, wishes: Wishes, planner: Planner, quiet: bool
) -> tuple[dict[str, Any], Plan]:
    """Make a plan, print and draw it as wished.

    Args:
        source: What is planned.
        wishes: What is to be shown.
        planner: Makes the plan.
        quiet: Whether to print no tables.

    Returns:
        The plan as JSON values, and itself.

    Raises:
        ValueError: If it cannot be made, or there are no spectra to draw.
    """
    from .modules import print_modules
    from .tables import print_plan

    if wishes.spectra and source.saved is None and source.request.needs != "quality":
        raise ValueError(
            f"the strategy {source.request.strategy} goes by no spectra: leave out --spectra"
        )
    plan, found = planner.settled(source, wishes.samples)
    findings = Findings.of_plan(plan)
    console = planner.console
    if not quiet:
        print_plan(plan, console)
    print_lines(console, [f"{WARNING}{line}" for line in (*source.notes, *cautions(plan))])
    if wishes.per_module and not quiet:
        console.print()
        print_modules(plan, findings, console)
    if wishes.plot is not None:
        from ..plots import Picture, save_plot

        scores = BlockScores.of(plan, findings)
        picture = Picture(
            title=f"AlphaLoRA experts: {Path(plan.base_model).name}",
            scores={block: scores.values.get(block) for block in plan.block_numbers},
            intervals=scores.intervals,
            experts=plan.block_numbers,
            matrices=findings.matrices if findings else (),
            spectra=_spectra(source, plan, findings, found) if wishes.spectra else None,
            notes=[*summary(plan), *_explained(plan, findings)],
            document=plan.to_dict(),
            score_name=scores.name,
            number_name=_number_name(plan),
        )
        save_plot(picture, wishes.plot)
        _drawn(wishes.plot, console)
    return plan.to_dict(), plan


def show_comparison(
    source: Source, strategy: str | None, wishes: Wishes, planner: Planner, quiet: bool
) -> tuple[dict[str, Any], Compared]:
    """Make the plans of a comparison, print and draw them as wished.

    Args:
        source: What is planned.
        strategy: The specification that replaced its allocation, if one did.
        wishes: What is to be shown.
        planner: Makes the plans.
        quiet: Whether to print no tables.

    Returns:
        The comparison as JSON values, and the column of the source's own plan.

    Raises:
        ValueError: If a plan cannot be made.
    """
    columns = compare_plans(source, wishes.compare, planner, strategy or AS_GIVEN)
    document = plans_as_document(columns)
    if not quiet:
        print_plans(columns, planner.console)
    if wishes.plot is not None:
        from ..plots import Series, save_comparison

        series = []
        for column in columns:
            scores = BlockScores.of(column.plan, Findings.of_plan(column.plan))
            series.append(Series(column.label, column.plan.block_numbers, scores.values))
        first = columns[0].plan
        save_comparison(
            series,
            wishes.plot,
            f"Plans for {Path(first.base_model).name}",
            document=document,
            number_name=_number_name(first),
        )
        _drawn(wishes.plot, planner.console)
    return document, next(column for column in columns if column.own)


def _explained(plan: Plan, findings: Findings | None) -> list[str]:
    if findings is None:
        return []
    return explain(findings, {unit.name: unit.experts for unit in plan.units})


def _number_name(plan: Plan) -> str:
    return "experts" if plan.spend == "experts" else f"rank / {plan.rank}"


def _spectra(source: Source, plan: Plan, findings: Findings | None, found: Measured) -> Spectra:
    """Return the spectra that a plan rests on, which are kept for a saved one too."""
    from ..planning import base_model
    from ..spectral import Measurement, measure

    if isinstance(found, Measurement):
        return found.spectra
    if findings is None:
        raise ValueError("the plan records no spectra: leave out --spectra")
    base = base_model(source.request)
    return measure(
        base.weights(plan.shapes), plan.shapes, findings.settings, cache=base.cache
    ).spectra


def _drawn(path: Path, console: Any) -> None:
    console.print(f"\nDrawn in {path}", highlight=False, markup=False, soft_wrap=True)
