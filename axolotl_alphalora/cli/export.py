"""`alphalora export`: a plain LoRA out of a routed adapter, with the price of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ..progress import working
from ..report.adapter_sentences import asking, exported
from ..report.adapter_tables import losses_table
from ..report.markdown import export_card
from ..report.terminal import print_as_is, print_lines, print_table
from .options import FilePath, check_files, errors_in_words, only_output
from .trained import (
    Data,
    Trained,
    check_adapter,
    data_options,
    given,
    let_waiting_threads_yield,
    load_trained,
)

# Copies: importing `export` for its help would import torch.
_METHODS = ("least-squares", "mean-gate")
_GGUF_TYPES = ("f32", "f16")
_AUTO = "auto"


class Rank(click.ParamType):
    """A rank, or `auto`."""

    name = "rank"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a whole number of at least 1, or `auto`."""
        if value == _AUTO:
            return value
        try:
            return click.IntRange(min=1).convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is no whole number of at least 1, and not {_AUTO}.", param, ctx)


@click.command()
@click.argument("adapter", metavar="ADAPTER_DIR", type=FilePath(file_okay=False))
@click.option(
    "--output",
    required=True,
    type=FilePath(file_okay=False),
    help="Directory for the LoRA; it must be new or empty.",
)
@click.option(
    "--data",
    "source",
    required=True,
    metavar="ROWS.jsonl|CONFIG.yml",
    type=FilePath(exists=True, dir_okay=False),
    help="What the routers are calibrated on.",
)
@click.option(
    "--eval-data",
    type=FilePath(exists=True, dir_okay=False),
    metavar="ROWS.jsonl",
    help="Other rows to measure the price on; otherwise every second row of --data.",
)
@click.option(
    "--method",
    type=click.Choice(_METHODS),
    default=_METHODS[0],
    show_default=True,
    help="Fit the routed output, or weigh the experts with their mean gates.",
)
@click.option(
    "--rank",
    type=Rank(),
    metavar="N|auto",
    help="Compress to this rank at most; auto: to the smallest that is within --max-kl.",
)
@click.option(
    "--same-rank",
    is_flag=True,
    help="Pad all layers with zeros to one rank: SGLang and other converters to GGUF need it.",
)
@click.option(
    "--max-kl",
    type=click.FloatRange(min=0),
    help="Write nothing if the KL divergence per token is above this.",
)
@click.option(
    "--gguf",
    metavar="FILE.gguf",
    type=FilePath(dir_okay=False),
    help="Also write it as a LoRA for llama.cpp, which may be inside of --output.",
)
@click.option(
    "--gguf-type",
    type=click.Choice(_GGUF_TYPES),
    default=_GGUF_TYPES[0],
    show_default=True,
    help="Of the numbers in the file for llama.cpp.",
)
@click.option(
    "--prefix",
    metavar="NAME",
    help="Write modules of `model` as modules of NAME: model.language_model for servers that load "
    "the whole of a multimodal base.",
)
@data_options
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def export(
    adapter: Path,
    output: Path,
    source: Path,
    eval_data: Path | None,
    method: Any,
    rank: Any,
    same_rank: bool,
    max_kl: float | None,
    gguf: Path | None,
    gguf_type: Any,
    prefix: str | None,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Write a plain LoRA that stands in for a routed adapter, and say what that costs.

    Layers without a router stay what they are. A router's choice for each token cannot be put into
    one matrix, so the others are approximated: by default by a least-squares fit of their output
    on rows of --data, of rank experts x `lora_r` unless --rank asks for less. The price is always
    measured, on rows that the fit has not seen: KL divergence per token from the routed adapter,
    and the loss of adapter, export and base. It is printed and written beside the export, as
    `alphalora_export.json`.

    With a YAML, the rows are those of the run: training rows to calibrate on, validation rows
    (`val_set_size`, `test_datasets`) to measure the price on.

    `probe.json` is written too: what export and base answer to some of the rows that measure the
    price. `alphalora probe URL --probe OUTPUT/probe.json` asks a server the same, and says whether
    it serves the export, the base or something else.
    """
    if rank == _AUTO and max_kl is None:
        raise click.UsageError("--rank auto looks for the smallest rank within --max-kl: add it.")
    if gguf is None and given("gguf_type"):
        raise click.UsageError("--gguf-type is of the file for llama.cpp: name it with --gguf.")
    let_waiting_threads_yield()
    console = Console(stderr=as_json)
    data = Data(source, **wanted)
    data.check()
    check_files({"--gguf": gguf}, source, eval_data)
    with errors_in_words(), only_output(as_json) as emit:
        data.check_source()
        from ..evaluation import load_tokenizer
        from ..export import check_output, export_adapter

        check_adapter(adapter)
        check_output(output, gguf)
        trained = load_trained(adapter, data, eval_data)
        calibration, held_out, measured_on = _split(trained, data, eval_data)
        config = trained.model.peft_config["default"]
        if config.base_model_name_or_path != trained.base:
            print_as_is(
                f"The adapter was trained on {config.base_model_name_or_path}; measured on, and "
                f"exported for, {trained.base}.",
                console,
            )
            config.base_model_name_or_path, config.revision = trained.base, None
        with working(console) as doing:
            found = export_adapter(
                trained.model,
                adapter,
                output,
                calibration=calibration,
                held_out=held_out,
                method=method,
                rank=rank,
                same_rank=same_rank,
                max_kl=max_kl,
                gguf=gguf,
                gguf_type=gguf_type,
                prefix=prefix,
                tokenizer=load_tokenizer(adapter, trained.base),
                notes={"data": str(source), "seed": data.seed, "measured_on": measured_on},
                stage=doing,
                card=lambda made: export_card(made, config.base_model_name_or_path),
            )
        if as_json:
            emit(json.dumps(found.to_dict(), indent=2))
    if not as_json:
        print_table(losses_table(found), console)
        saved = f"Saved to {output}" if gguf is None else f"Saved to {output} and {gguf}"
        print_lines([*exported(found), *found.servers(), saved, asking(output)], console)


def _split(
    trained: Trained, data: Data, eval_data: Path | None
) -> tuple[list[Any], list[Any], str]:
    """Rows to calibrate on, rows to measure on, and what the latter are."""
    if eval_data is not None:
        unseen = _unseen(trained.held_out, trained.rows)
        if not unseen:
            raise ValueError(
                f"--eval-data {eval_data} has no row that {data.source} has not: give others."
            )
        return trained.rows, unseen, str(eval_data)
    if trained.held_out:
        return trained.rows, trained.held_out, "the run's validation rows"
    if len(trained.rows) < 2:
        raise ValueError(f"{data.source} has one row; two are needed, or --eval-data.")
    what = f"every second row of {data.source}"
    fitted = trained.rows[::2]
    unseen = _unseen(trained.rows[1::2], fitted)
    if not unseen:
        raise ValueError(f"{data.source} has the same row for several tasks and no other.")
    return fitted, unseen, what


def _unseen(rows: list[Any], fitted: list[Any]) -> list[Any]:
    """The rows whose tokens are those of none of the others."""

    def tokens(row: Any) -> tuple[int, ...]:
        return tuple(row.inputs["input_ids"].flatten().tolist())

    seen = set(map(tokens, fitted))
    return [row for row in rows if tokens(row) not in seen]
