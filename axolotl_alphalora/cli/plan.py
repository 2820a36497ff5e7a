"""``alphalora plan``: how many experts each block would get, without loading the model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import Wishes, check_estimator, errors_in_words, shared_options

if TYPE_CHECKING:
    from ..allocation import Plan
    from ..planning import PlanRequest
    from ..spectral import Measurement, Spectra
    from .compare import Column


@click.command()
@click.argument("source", metavar="CONFIG.yml|MODEL_DIR|HUB_ID|FILE.gguf")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON instead of a table.")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="Save the plan to a file."
)
@shared_options
@click.option(
    "--compare",
    multiple=True,
    metavar="SPEC[,SPEC...]",
    help="Lay other ways beside this one: an estimator, a strategy, or estimator=hill+beta=1.",
)
def plan(source: str, as_json: bool, output: Path | None, **wanted: Any) -> None:
    """Print how many experts each block gets, and why.

    SOURCE is an Axolotl YAML with an `alphalora:` block, or a model (every linear layer, the
    block's defaults). Only a quantised model is loaded: the weights of any other are read one
    matrix at a time, and their spectra are kept for the next time. A saved plan can be named in the
    YAML as `alphalora.plan`.

    A SPEC of --compare is made of parts joined by +: option=value, or the name of an estimator or
    a strategy. What it leaves open is as the YAML says. With --json, --compare prints an object
    whose `columns` hold `label`, `rank_correlation`, `blocks_that_differ`, `experts_that_move`,
    `trust` and `plan` each.
    """
    wishes = Wishes.read(**wanted)
    from rich.console import Console

    console = Console(stderr=as_json)
    with errors_in_words():
        if wishes.compare:
            columns = _compare(source, wishes.compare, console)
            document = _show_columns(columns, None if as_json else console)
            if output is not None:
                columns[0][1].save(output)
        else:
            document = _make_and_show(source, wishes, output, console, quiet=as_json)
    if as_json:
        click.echo(json.dumps(document, indent=2))
    if output is not None:
        console.print(
            f"\nSaved to {output}\nIn the YAML: alphalora: {{plan: {output}}}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def make_plan(source: str | Path, console: Any = None, samples: int = 0) -> Plan:
    """Plan for an Axolotl YAML, or for a model with the defaults.

    Args:
        source: The YAML, or the model's directory, hub id or ``.gguf`` file.
        console: A rich console for the progress bars; None shows none.
        samples: Resamples for the intervals of the blocks' scores; 0 leaves them out.

    Raises:
        ValueError: If the configuration, the model's files or the budget do not fit.
    """
    from .source import read_source

    return _plan(*read_source(source), console, samples)[0]


def _plan(
    request: PlanRequest, saved: str | None, console: Any, samples: int
) -> tuple[Plan, Measurement | None]:
    """Make a plan, or take the saved one, which comes without a measurement."""
    from ..allocation import Plan, resolve_options
    from ..planning import check_plan, measured_plan
    from ..progress import working

    if saved is not None:
        if samples:
            raise ValueError(
                f"--confidence makes a new plan, but the YAML names the saved plan {saved}: "
                "remove `alphalora.plan`"
            )
        found = Plan.load(saved)
        check_plan(found, request)
        return found, None
    options = resolve_options(request.strategy, request.options)
    check_estimator(options.get("estimator", ""), samples)
    with working(console) as doing:
        return measured_plan(
            request,
            doing("Reading spectra"),
            load=True,
            samples=samples,
            resampling=doing("Resampling"),
        )


def _spectra(request: PlanRequest, plan: Plan) -> Spectra:
    """Return the spectra that a saved plan rests on."""
    from ..planning import base_model
    from ..settings import QualitySettings
    from ..spectral import measure

    shapes = {module.name: module.shape for module in plan.modules}
    base = base_model(request)
    settings = QualitySettings.from_options(plan.strategy)
    return measure(base.weights(shapes), shapes, settings, cache=base.cache).spectra


def _make_and_show(
    source: str, wishes: Wishes, output: Path | None, console: Any, quiet: bool
) -> dict[str, Any]:
    """Make a plan, save, print and draw it as wished; returns it as JSON values."""
    from .explain import explain
    from .findings import Findings
    from .source import read_source
    from .tables import print_matrices, print_plan

    request, saved = read_source(source)
    plan, measured = _plan(request, saved, console, wishes.samples)
    if output is not None:
        plan.save(output)
    if not quiet:
        print_plan(plan, console)
    findings = Findings.of_plan(plan)
    if wishes.per_module and not quiet and findings is not None:
        console.print()
        print_matrices(findings.matrices, console)
    if wishes.plot is not None:
        from ..plots import Picture, save_plot

        experts = {block.name: block.experts for block in plan.blocks}
        spectra = None
        if wishes.spectra:
            spectra = measured.spectra if measured else _spectra(request, plan)
        picture = Picture(
            title=f"AlphaLoRA experts: {Path(plan.base_model).name}",
            scores={block.name: block.score for block in plan.blocks},
            intervals=findings.intervals if findings else {},
            experts=experts,
            matrices=findings.matrices if findings else (),
            spectra=spectra,
            notes=explain(findings, experts) if findings else (),
            document=plan.to_dict(),
        )
        save_plot(picture, wishes.plot)
        console.print(f"\nDrawn in {wishes.plot}", highlight=False, markup=False, soft_wrap=True)
    return plan.to_dict()


def _compare(source: str, specs: list[str], console: Any) -> list[tuple[Column, Plan]]:
    from ..allocation import Plan
    from .compare import AS_GIVEN, Column
    from .findings import Findings
    from .source import read_source

    request, saved = read_source(source)
    if saved is not None:
        request = _as_saved(request, Plan.load(saved))
    requests = [_changed(request, spec) for spec in specs]
    columns = []
    for label, wanted in zip([AS_GIVEN, *specs], [request, *requests], strict=True):
        plan, _ = _plan(wanted, saved if label == AS_GIVEN else None, console, 0)
        findings = Findings.of_plan(plan)
        column = Column(
            label=label,
            scores={block.name: block.score for block in plan.blocks},
            experts={block.name: block.experts for block in plan.blocks},
            trust=findings.trust if findings else None,
            document=plan.to_dict(),
        )
        columns.append((column, plan))
    return columns


def _show_columns(columns: list[tuple[Column, Plan]], console: Any) -> dict[str, Any]:
    from .compare import as_document, print_comparison
    from .layout import source_line

    first = columns[0][1]
    if console is not None:
        print_comparison(
            [column for column, _ in columns],
            console,
            f"Alpha and experts (n) per block, {first.total_experts} experts in all",
            source_line(first.base_model, first.weights),
        )
    return as_document([column for column, _ in columns], "plan")


def _changed(request: PlanRequest, spec: str) -> PlanRequest:
    """Apply a specification; options that a new strategy does not take are dropped."""
    from ..allocation import STRATEGIES, resolve_options
    from .compare import read_spec

    given = read_spec(spec)
    strategy = given.pop("strategy", request.strategy)
    taken = STRATEGIES[strategy].options if strategy in STRATEGIES else {}
    kept = {name: value for name, value in request.options.items() if name in taken}
    options = {**kept, **given}
    try:
        check_estimator(resolve_options(strategy, options).get("estimator", ""))
    except (ValueError, ImportError) as error:
        raise type(error)(f"--compare {spec}: {error}") from error
    return replace(request, strategy=strategy, options=options)


def _as_saved(request: PlanRequest, plan: Plan) -> PlanRequest:
    """Return a request with the strategy and budget of a saved plan, which the YAML leaves out."""
    options = {name: value for name, value in plan.strategy.items() if name != "name"}
    return replace(request, strategy=plan.strategy["name"], options=options, budget=plan.budget)
