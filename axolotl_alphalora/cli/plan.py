"""``alphalora plan``: how many experts each block would get, without loading the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..allocation import Plan


@click.command()
@click.argument("source", metavar="CONFIG.yml|MODEL_DIR|HUB_ID")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON instead of a table.")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="Save the plan to a file."
)
def plan(source: str, as_json: bool, output: Path | None) -> None:
    """Print how many experts each block gets, and why.

    SOURCE is an Axolotl YAML with an `alphalora:` block, or a model (every linear layer, the
    block's defaults). The model is not loaded: its weights are read one matrix at a time. A saved
    plan can be named in the YAML as `alphalora.plan`.
    """
    from rich.console import Console

    console = Console(stderr=as_json)
    try:
        result = make_plan(source, console)
        if output is not None:
            result.save(output)
    except (ValueError, TypeError, OSError) as error:
        raise click.ClickException(_message(error)) from error
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    else:
        from .tables import print_plan

        print_plan(result, console)
    if output is not None:
        console.print(f"Saved to {output}. In the YAML: alphalora: {{plan: {output}}}")


def make_plan(source: str | Path, console: Any = None) -> Plan:
    """Plan for an Axolotl YAML, or for a model directory or hub id with the defaults.

    Args:
        source: The YAML, directory or hub id.
        console: A rich console for the progress bar; None shows none.

    Raises:
        ValueError: If the configuration, the model's files or the budget do not fit.
    """
    from ..allocation import Plan
    from ..planning import check_plan, plan_from_files
    from ..plugin.request import plan_request, read_block

    cfg = _read(str(source))
    request = plan_request(cfg)
    path = read_block(cfg).plan
    if path is not None:
        saved = Plan.load(path)
        check_plan(saved, request)
        return saved
    return plan_from_files(request, _progress(console) if console is not None else None)


def _read(source: str) -> dict[str, Any]:
    """The configuration in a YAML file, or one that stands for a bare model."""
    path = Path(source)
    if path.suffix not in (".yml", ".yaml"):
        return {"base_model": source, "lora_target_linear": True}
    import yaml

    try:
        cfg = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(cfg, dict):
        raise ValueError(f"{path} is no Axolotl configuration: it holds no keys.")
    if cfg.get("adapter") not in (None, "alphalora"):
        raise ValueError(f"{path}: `adapter` is {cfg['adapter']}, so there is nothing to plan.")
    _check_names(path, cfg)
    return cfg


def _check_names(path: Path, cfg: dict[str, Any]) -> None:
    """Refuse a misspelt adapter option; the host's own validation would take seconds to import."""
    from difflib import get_close_matches

    from ..plugin.refusals import HONOURED, REFUSED

    known = {*HONOURED, *(row.key for row in REFUSED)}
    for key in cfg:
        if str(key).startswith(("lora_", "peft_")) and key not in known:
            near = get_close_matches(key, HONOURED, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise ValueError(f"{path}: `{key}` is not an option.{hint}")


def _progress(console: Any) -> Callable[[Sequence[str]], Callable[[str], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    def start(names: Sequence[str]) -> Callable[[str], None]:
        bar = Progress(
            TextColumn("Reading spectra"),
            BarColumn(),
            MofNCompleteColumn(),
            console=console,
            transient=True,
        )
        task = bar.add_task("spectra", total=len(names))
        bar.start()
        done = 0

        def step(name: str) -> None:
            nonlocal done
            done += 1
            bar.update(task, completed=done)
            if done == len(names):
                bar.stop()

        return step

    return start


def _message(error: Exception) -> str:
    """A pydantic error without its header and links; any other as it is."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    lines = []
    for item in error.errors():
        where = ".".join(["alphalora", *(str(part) for part in item["loc"])])
        lines.append(f"`{where}`: {item['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)
