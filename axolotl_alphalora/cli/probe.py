"""`alphalora probe`: whether a server serves the adapter."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from ..files import ADAPTER_CONFIG, PROBE, expanded, read_adapter_config, write_whole
from ..progress import working
from ..report.probe_sentences import distances_table, verdict, written
from ..report.terminal import print_lines, print_table
from .options import FilePath, check_files, errors_in_words, only_output
from .trained import Data, data_options, given, let_waiting_threads_yield, load_trained

if TYPE_CHECKING:
    from ..probe import Answer, Probe

BASE_IS_SERVED, SOMETHING_ELSE = 3, 4
"""Exit statuses; 1 and 2 are those of errors."""


@click.command()
@click.argument("target", metavar="URL|DIR")
@click.option(
    "--probe",
    "file",
    metavar="probe.json",
    type=FilePath(dir_okay=False),
    help="What adapter and base answer; of a directory, the one in it.",
)
@click.option("--model", metavar="NAME", help="What the server calls the adapter.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    help="Nats a token that the answers may be away; by default half of what a wrong scale is, at "
    "most 0.25.",
)
@click.option("--write", is_flag=True, help="Write the probe of an adapter, by rows of --data.")
@click.option(
    "--data",
    "source",
    metavar="ROWS.jsonl|CONFIG.yml",
    type=FilePath(exists=True, dir_okay=False),
    help="With --write: the beginnings of its rows are the prompts.",
)
@data_options
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def probe(
    target: str,
    file: Path | None,
    model: str | None,
    tolerance: float | None,
    write: bool,
    source: Path | None,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Ask a server whether it serves an adapter or an export.

    Servers pass over what they cannot place, and read one scale where there are several, without a
    message. A probe finds out: `probe.json` holds prompts, and what adapter and base answer to
    them, token by token. `alphalora export` writes one beside each export; for an adapter, write
    it with --write. URL is a server in the style of OpenAI's API, whose `/v1/completions` tells
    log-probabilities: vLLM, llama.cpp, SGLang and others. DIR is an adapter, an export, or a
    merged model, which is loaded by transformers and PEFT.

    The exit status is 0 if the adapter is served, 3 if the base model is, 4 if something else is.
    OPENAI_API_KEY is sent to the server if it is set.
    """
    _check(target, file, model, write, source, wanted)
    let_waiting_threads_yield()
    console = Console(stderr=as_json)
    with errors_in_words(), only_output(as_json) as emit:
        if write:
            assert source is not None
            _write(Path(expanded(target)), file, Data(source, **wanted), console)
            return
        from ..probe import judge, read_probe

        known = read_probe(file or Path(expanded(target)) / PROBE)
        if _is_url(target):
            answers = _ask_server(target, known, model, console)
        else:
            answers = _ask_directory(Path(expanded(target)), known, wanted, console)
        found = judge(known, answers, tolerance)
        if as_json:
            emit(json.dumps(asdict(found), indent=2))
        else:
            print_table(distances_table(found), console)
            print_lines(verdict(found), console)
    if found.served != "adapter":
        sys.exit(BASE_IS_SERVED if found.served == "base" else SOMETHING_ELSE)


def _is_url(target: str) -> bool:
    return target.startswith(("http://", "https://"))


def _check(
    target: str,
    file: Path | None,
    model: str | None,
    write: bool,
    source: Path | None,
    wanted: dict[str, Any],
) -> None:
    """Check that options go together.

    Raises:
        click.UsageError: If they do not; says what to do.
    """
    if write != (source is not None):
        raise click.UsageError("--write and --data belong together: rows make the prompts.")
    loads = any(wanted[name] for name in ("base_model", "load_in_4bit", "load_in_8bit"))
    idle = given("tolerance", "as_json") if write else given("samples", "seed", "sequence_len")
    if idle:
        what = "a verdict, which --write does not give" if write else "the rows of --write"
        raise click.UsageError(f"{', '.join(idle)}: for {what}. Leave it out.")
    if _is_url(target) and (write or loads):
        raise click.UsageError(
            "--write, --base-model and --load-in-... are for a directory, not for a server."
        )
    if not _is_url(target) and ":" in target and not Path(expanded(target)).is_dir():
        raise click.UsageError(f"{target} is no directory; a server's address begins with http://")
    folder = Path(expanded(target))
    merged = not write and folder.is_dir() and not (folder / ADAPTER_CONFIG).is_file()
    if merged and wanted["base_model"]:
        raise click.UsageError(
            f"--base-model is that of an adapter, and {target} holds none: a merged model is "
            "loaded as it is. Leave it out."
        )
    if not _is_url(target) and model is not None:
        raise click.UsageError("--model is the name of a server's model, and this is a directory.")
    if write and source is not None:
        Data(source, **wanted).check()
        check_files({"--probe": file or folder / PROBE}, source)
    if not write and file is None and _is_url(target):
        raise click.UsageError("name the file that says what to ask: --probe DIR/probe.json")
    if not write and file is not None and not file.exists():
        raise click.UsageError(f"--probe {file}: there is no such file.")


def _write(adapter: Path, file: Path | None, data: Data, console: Console) -> None:
    from ..evaluation import load_tokenizer
    from ..probe import make_probe, prompts_of, separations

    data.check_source()
    trained = load_trained(adapter, data)
    tokenizer = load_tokenizer(adapter, trained.base)
    prompts = prompts_of(trained.held_out or trained.rows, tokenizer)
    if not prompts:
        raise ValueError(f"no row of {data.source} has a beginning to ask: give longer rows.")
    with working(console) as doing:
        step = doing("Asking")(prompts)
        made = make_probe(
            trained.model,
            tokenizer,
            prompts,
            base_model=trained.base,
            method="alphalora",
            step=step,
        )
    place = file or adapter / PROBE
    write_whole(place, made.to_json())
    print_lines([*written(made, separations(made)), f"Saved to {place}"], console)


def _ask_server(url: str, known: Probe, model: str | None, console: Console) -> list[Answer]:
    from ..probe import ask_server

    prompts = [one.prompt for one in known.asked]
    with working(console) as doing:
        step = doing("Asking")(prompts)
        return ask_server(url, prompts, known.tokens, model=model, step=step)


def _ask_directory(
    folder: Path, known: Probe, wanted: dict[str, Any], console: Console
) -> list[Answer]:
    from ..evaluation import load_adapted, load_base, load_tokenizer
    from ..probe import ask_model

    loading = {key: wanted[key] for key in ("load_in_4bit", "load_in_8bit")}
    if (folder / ADAPTER_CONFIG).is_file():
        settings = read_adapter_config(folder)
        named = settings.get("base_model_name_or_path") or known.base_model
        base = wanted["base_model"] or named
        revision = settings.get("revision") if base == named else None
        model = load_adapted(load_base(base, revision=revision, **loading), folder)
    else:
        base = str(folder)
        model = load_base(base, **loading).eval()
    tokenizer = load_tokenizer(folder, base)
    answers = []
    with working(console) as doing:
        step = doing("Asking")([one.prompt for one in known.asked])
        for one in known.asked:
            answers.append(ask_model(model, tokenizer, one.prompt, known.tokens))
            step(one.prompt)
    return answers
