"""`alphalora plan`: how many experts each block would get, and why."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml
from rich.console import Console

from ..files import write_whole
from ..mixture import Mixture
from ..planning import Planner, base_model, compare_plans, read_source
from ..planning.as_lora import FORMATS, check_lora, comment
from ..planning.config import MIXTURE
from ..planning.source import AS_GIVEN
from ..report.documents import plans_document
from ..report.evidence import study_line
from ..report.findings import Findings
from ..report.plan_sentences import cautions, data_line
from ..report.plan_tables import correlations_table, modules_table, plans_legend, plans_table
from ..report.plots import save_comparison, save_plan
from ..report.terminal import print_as_is, print_lines, print_plan, print_table
from ..report.words import WARNING
from .options import (
    Display,
    FilePath,
    ModelName,
    check_files,
    errors_in_words,
    only_output,
    shared_options,
)

if TYPE_CHECKING:
    from ..allocation import Plan
    from ..planning import Compared, Measured, Source
    from ..plugin.session import HostModel
    from ..spectral import Spectra

_UNLIKE_AS_LORA = ("per_module", "confidence", "plot", "compare")
_AS_LORA = {".json": "json", ".py": "python"}
"""Suffix of a file to what `--as-lora` writes into it; a YAML into any other."""


@click.command()
@click.argument("source", metavar="CONFIG.yml|MODEL_DIR|HUB_ID|FILE.gguf", type=ModelName())
@click.argument("specs", nargs=-1, metavar="[SPEC]...")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON instead of a table.")
@click.option("--output", type=FilePath(dir_okay=False), help="Save the plan to a file.")
@click.option("--strategy", metavar="SPEC", help="Replace the YAML's allocation: mola:2468.")
@shared_options
@click.option(
    "--compare",
    multiple=True,
    metavar="SPEC",
    help="Lay other plans of the same budget beside this one; further SPECs may follow.",
)
@click.option(
    "--as-lora",
    is_flag=True,
    help="Print the YAML of a plain LoRA with the same capacity per matrix; with --json, or "
    "--output to a .json or .py file, PEFT's LoraConfig.",
)
def plan(
    source: str,
    specs: tuple[str, ...],
    as_json: bool,
    output: Path | None,
    strategy: str | None,
    as_lora: bool,
    **wanted: Any,
) -> None:
    """Print how many experts each block gets, and why.

    SOURCE is an Axolotl YAML with an `alphalora:` block, or a model (every linear layer, the
    block's defaults). The weights are read one matrix at a time, and their spectra are kept for the
    next time; only a quantised model is loaded, and that of a strategy which measures on the YAML's
    training data. A saved plan can be named in the YAML as `alphalora.plan`.

    A SPEC is made of parts joined by +: the name of a strategy (`alphalora strategies` lists them),
    also as mola:2468, the name of an estimator, opposite or shuffled (the option `order`), or
    option=value. What it leaves open is as the YAML
    says, or the default where it names another strategy.

    All plans of --compare meet one budget: the YAML's, or what its plan comes to if its strategy
    has numbers of its own. With --json, --compare prints an object: `columns` hold `label`,
    `rank_correlation`, `blocks_that_differ`, `experts_that_move`, `stability`, `trust` and `plan`
    each, `rank_correlations` those of all pairs. --output saves the plan of the YAML (or the
    model, or --strategy), not that of a SPEC.
    """
    if specs and not wanted["compare"]:
        raise click.UsageError(f"{specs[0]!r} is one argument too many: is --compare missing?")
    if as_lora:
        written = _lora_format(wanted, as_json, output)
    wanted["compare"] = (*wanted["compare"], *specs)
    display = Display.read(**wanted, plots_compared=True)
    check_files({"--output": output, "--plot": display.plot}, source)
    console = Console(stderr=as_json or as_lora)
    with errors_in_words(), only_output(as_json or as_lora) as emit:
        known = read_source(source, strategy)
        planner = _planner(known, console, halves=bool(display.compare))
        if as_lora:
            plan = planner.settled(known)[0]
            text = FORMATS[written](known, plan)
            check_lora(known, plan)
            if written == "json":  # which takes no comments
                print_as_is("\n".join(comment(plan, known, for_host=False)), console)
            if output is None:
                emit(text.removesuffix("\n"))
            else:
                write_whole(output, text)
                print_as_is(f"Saved to {output}", console)
            return
        if display.compare:
            document, own = _show_comparison(
                known, strategy, display, planner, output, quiet=as_json
            )
            made, which = own.plan, f": the plan {own.label!r}"
        else:
            document, made = _show_plan(known, display, planner, output, quiet=as_json)
            which = ""
        if as_json:
            emit(json.dumps(document, indent=2))
    if output is not None:
        print_as_is(f"\nSaved to {output}{which}\nIn the YAML: {_in_block(made, output)}", console)


def _in_block(plan: Plan, saved: Path) -> str:
    """The `alphalora:` block that takes a saved plan, with the shape that it was made for."""
    usual = Mixture()
    shape = {key: getattr(plan, key) for key in MIXTURE}
    changed = {key: value for key, value in shape.items() if value != getattr(usual, key)}
    block = {"plan": str(saved)} | changed
    style: Any = {"default_flow_style": True, "sort_keys": False, "allow_unicode": True}
    return f"alphalora: {yaml.safe_dump(block, width=math.inf, **style).strip()}"


def _planner(source: Source, console: Any, halves: bool) -> Planner:
    """What makes the plans; the host loads the model, once, where that takes a model and data."""

    @cache
    def host(path: Path) -> HostModel:
        from ..plugin.session import HostModel

        return HostModel(path, halves)

    path = source.path
    return Planner(None if path is None else lambda request: host(path).plan(request), console)


def _lora_format(given: dict[str, Any], as_json: bool, output: Path | None) -> str:
    """What `--as-lora` writes; options that do not go with it are refused."""
    for name in _UNLIKE_AS_LORA:
        if given[name]:
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"--as-lora prints a LoRA and nothing else: leave out {option}.")
    suffix = ".json" if output is None and as_json else "" if output is None else output.suffix
    written = _AS_LORA.get(suffix, "yaml")
    if as_json and written != "json":
        raise click.UsageError(f"--json writes no {suffix} file: leave out --json.")
    return written


def _show_plan(
    source: Source, display: Display, planner: Planner, output: Path | None, quiet: bool
) -> tuple[dict[str, Any], Plan]:
    """Make a plan, print, save and draw it as asked; returns it as JSON values, and itself."""
    if display.spectra and source.saved is None and source.request.needs != "quality":
        raise ValueError(
            f"the strategy {source.request.strategy} goes by no spectra: leave out --spectra"
        )
    plan, found = planner.settled(source, display.samples)
    findings = Findings.of_plan(plan)
    console = planner.console
    if not quiet:
        print_plan(plan, console)
        print_lines(filter(None, [study_line(plan)]), console)
    print_lines(_data(source, plan), console)
    warnings = (*source.notes, *_refused(source), *cautions(plan))
    print_lines((f"{WARNING}{line}" for line in warnings), console)
    if display.per_module and not quiet:
        console.print()
        print_table(modules_table(plan, findings), console)
    if output is not None:
        plan.save(output)
    if display.plot is not None:
        spectra = _spectra(source, plan, findings, found) if display.spectra else None
        save_plan(plan, findings, display.plot, spectra)
        print_as_is(f"\nDrawn in {display.plot}", console)
    return plan.to_dict(), plan


def _refused(source: Source) -> list[str]:
    """Name the options of the YAML that a run refuses."""
    from ..plugin.refusals import offending

    if source.path is None:
        return []
    return [f"`axolotl train` refuses {row.message()}" for row in offending(source.config)]


def _data(source: Source, plan: Plan) -> list[str]:
    """Say how large the plan is beside the YAML's data, where that is prepared already."""
    if source.path is None:
        return []
    from ..plugin.prepared import prepared_tokens

    found = prepared_tokens(source.config)
    if found is None:
        return []
    return [data_line(plan, found.rows, found.tokens, str(found.folder))]


def _show_comparison(
    source: Source,
    strategy: str | None,
    display: Display,
    planner: Planner,
    output: Path | None,
    quiet: bool,
) -> tuple[dict[str, Any], Compared]:
    """Make plans, print and draw them as asked, and save the source's own.

    Returns:
        JSON values, and the source's own plan.
    """
    columns = compare_plans(source, display.compare, planner, strategy or AS_GIVEN)
    document = plans_document(columns)
    if not quiet:
        print_table(plans_table(columns), planner.console)
        if len(columns) > 2:
            planner.console.print()
            print_table(correlations_table(columns), planner.console)
        print_lines([plans_legend(columns)], planner.console)
    own = next(column for column in columns if column.own)
    if output is not None:
        own.plan.save(output)
    if display.plot is not None:
        save_comparison(columns, display.plot, document)
        print_as_is(f"\nDrawn in {display.plot}", planner.console)
    return document, own


def _spectra(source: Source, plan: Plan, findings: Findings | None, found: Measured) -> Spectra:
    """Return the spectra that a plan rests on, which are kept for a saved one too."""
    from ..spectral import Measurement, measure

    if isinstance(found, Measurement):
        return found.spectra
    if findings is None:
        raise ValueError("the plan records no spectra: leave out --spectra")
    base, shapes = base_model(source.request), plan.shapes
    return measure(base.weights(shapes), shapes, findings.settings, cache=base.cache).spectra
