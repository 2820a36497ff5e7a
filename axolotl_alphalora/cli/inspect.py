"""`alphalora inspect`: what the experts of a trained adapter have learnt."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from ..progress import working
from ..report.adapter_sentences import facts, stands_out
from ..report.adapter_tables import blocks_table, modules_table, routers_table, tasks_table
from ..report.documents import inspection_document
from ..report.plots import check_plot, save_inspection
from ..report.terminal import print_as_is, print_lines, print_paragraph, print_table
from .options import FilePath, check_files, errors_in_words, only_output
from .trained import (
    DATA_OPTIONS,
    Data,
    data_options,
    given,
    let_waiting_threads_yield,
    load_trained,
)

if TYPE_CHECKING:
    from ..inspection import Inspection


@click.command()
@click.argument("adapter_dir", metavar="ADAPTER_DIR", type=FilePath())
@click.option(
    "--data",
    "source",
    metavar="ROWS.jsonl|CONFIG.yml",
    type=FilePath(exists=True, dir_okay=False),
    help="Also run rows of this data, and show what the routers do with them.",
)
@data_options
@click.option("--per-module", is_flag=True, help="Also print every module.")
@click.option(
    "--plot",
    type=FilePath(dir_okay=False),
    help="Draw heat maps into a .png, .svg or .pdf file, or a report into an .html file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def inspect(
    adapter_dir: Path,
    source: Path | None,
    per_module: bool,
    plot: Path | None,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Show what the experts of a trained adapter have learnt.

    Without --data it reads the adapter's two files alone: neither the base model nor a GPU is
    needed. Of every expert's update (scaling x B A) it shows the norm and the effective rank, over
    how many directions the update is spread; of every module the redundancy, the mean absolute
    cosine between its experts' updates: 0 where they are unrelated, 1 where they are copies.

    With --json the output is one object: `format`, `version`, `adapter` (base model, rank, top_k,
    segments, router_rank, share_a, scaling, strategy, blocks, modules, total_experts,
    module_experts, parameters), `redundancy`, `blocks` (experts, ranks, mean_norm,
    mean_effective_rank, redundancy, max_cosine) and `modules` (the same, the matrix of cosines, and
    norm, effective_rank and singular_values of each expert). `data` and `routing` are null and
    `tasks` is empty without data.

    With --data the base model is loaded and rows are run through it: those of a JSON lines file
    (`messages`, `instruction` and `output`, `prompt` and `completion`, or `text`), or training rows
    of the run whose YAML is named. A column `task` names the tasks, which are told apart.
    """
    let_waiting_threads_yield()
    data = None
    if source is not None:
        data = Data(source, **wanted)
        data.check()
    elif idle := given(*DATA_OPTIONS):
        raise click.UsageError(
            f"the base model is loaded, and rows are read, for --data: add it, or leave out "
            f"{', '.join(idle)}."
        )
    check_files({"--plot": plot}, source)
    with errors_in_words(), only_output(as_json) as emit:
        if data is not None:
            data.check_source()
        if plot is not None:
            check_plot(plot)

        from ..inspection import inspect_weights

        with working(Console(stderr=True)) as doing:
            found = inspect_weights(adapter_dir, doing("Reading experts"))
        if data is not None:
            found = _watched(found, adapter_dir, data)
        show(found, adapter_dir, per_module, plot, as_json, emit)


def _watched(found: Inspection, adapter_dir: Path, data: Data) -> Inspection:
    """Add what the routers decide on data."""
    from ..evaluation import router_usage
    from ..inspection import InspectedData

    trained = load_trained(adapter_dir, data)
    tasks = [sample.task for sample in trained.rows]
    with working(Console(stderr=True)) as doing:
        step = doing("Running rows")(tasks)
        usage = router_usage(trained.model, trained.rows, lambda sample: step(sample.task))
    tokens = sum(sample.inputs["input_ids"].numel() for sample in trained.rows)
    return replace(
        found,
        usage=usage,
        data=InspectedData(str(data.source), tokens, dict(Counter(tasks))),
    )


def show(
    inspection: Inspection,
    adapter_dir: Path,
    per_module: bool,
    plot: Path | None,
    as_json: bool,
    emit: Callable[[str], None] = click.echo,
) -> None:
    """Print and draw an inspection as asked; `emit` takes the JSON."""
    console = Console(stderr=as_json)
    title = f"Experts of {adapter_dir.resolve().name}"
    if as_json:
        emit(json.dumps(inspection_document(inspection), indent=2, allow_nan=False))
    else:
        _print(inspection, title, console)
        if per_module:
            console.print()
            print_table(modules_table(inspection), console)
    if plot is not None:
        save_inspection(inspection, plot, title)
        print_as_is(f"\nDrawn in {plot}", console)


def _print(inspection: Inspection, title: str, console: Console) -> None:

    print_table(blocks_table(inspection, title), console)
    for line in facts(inspection):
        print_paragraph(line, console)
    if inspection.routing is not None:
        console.print()
        print_table(routers_table(inspection), console)
    if inspection.tasks:
        console.print()
        print_table(tasks_table(inspection), console)
    print_lines(stands_out(inspection), console)
