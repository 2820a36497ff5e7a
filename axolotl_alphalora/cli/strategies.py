"""`alphalora strategies` and `config-schema`: what the `alphalora:` block may hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console

from ..report.tables import Column, Table
from ..report.terminal import print_lines, print_paragraph, print_table
from ..report.words import WARNING
from .options import errors_in_words, only_output

_NEEDS = {
    "nothing": "nothing",
    "quality": "the weights",
    "sensitivity": "training data, on which gradients are taken",
    "activations": "training data, which the model runs forward on",
}
_BUDGET = {
    "needed": "needed (5 experts per block if none is given)",
    "optional": "optional (without one it has numbers of its own)",
    "none": "none (it has numbers of its own)",
}


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def strategies(name: str | None, as_json: bool) -> None:
    """List the strategies that share out experts.

    Built-in ones and those of installed packages, each with what it needs and its options; with
    NAME only that one. In the YAML: `alphalora: {allocation: {strategy: NAME, OPTION: VALUE}}`.

    With --json the output is one object: `strategies` (name, package, summary, needs, budget,
    reference, shorthand: the option that NAME:VALUE sets, and options: name, default, description)
    and `problems`: what is wrong with installed packages.
    """

    with errors_in_words(), only_output(as_json) as emit:
        found, problems = _collect(name)
        if as_json:
            emit(json.dumps({"strategies": found, "problems": problems}, indent=2))
            return
    console = Console()
    for number, row in enumerate(found):
        if number:
            console.print()
        _print(row, console)

    print_lines((f"{WARNING}{problem}" for problem in problems), console)


def _collect(name: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what is known of the strategies, and what is wrong with any."""
    from ..allocation import StrategyError, registry

    known = registry()
    if name is not None:
        return [_described(name)], []
    rows, problems = [], list(known.problems)
    for one in known.names():
        try:
            rows.append(_described(one))
        except StrategyError as error:
            problems.append(str(error))
    return rows, problems


def _described(name: str) -> dict[str, Any]:
    from ..allocation import registry

    found = registry().get(name)
    strategy, defaults = found.strategy, found.options({})
    values = defaults.model_dump(mode="json")
    return {
        "name": strategy.name,
        "package": found.package,
        "built_in": found.built_in,
        "summary": strategy.summary,
        "needs": strategy.needs,
        "budget": defaults.budget_use,
        "reference": strategy.reference,
        "shorthand": strategy.shorthand,
        "options": [
            {"name": option, "default": values[option], "description": field.description or ""}
            for option, field in found.fields.items()
        ],
    }


def _print(row: dict[str, Any], console: Console) -> None:

    origin = "" if row["built_in"] else f" (from {row['package']})"
    print_paragraph(f"{row['name']}{origin}", console, "bold")
    lines = [
        _sentence(row["summary"]),
        f"Needs: {_NEEDS[row['needs']]}. Budget: {_BUDGET[row['budget']]}.",
    ]
    lines += [f"From {row['reference']}."] if row["reference"] else []
    if row["shorthand"]:
        lines.append(f"Short form: {row['name']}:VALUE sets {row['shorthand']}.")
    for line in lines:
        print_paragraph(line, console, indent="  ")
    if row["options"]:
        print_table(_options(row["options"]), console)


def _options(options: Sequence[dict[str, Any]]) -> Table:

    defaults = [option["default"] for option in options]
    texts = [value if isinstance(value, str) else json.dumps(value) for value in defaults]
    return Table(
        [
            Column("  option", [f"  {option['name']}" for option in options], left=True),
            Column("default", texts, left=True),
            Column(
                "description", [option["description"] for option in options], left=True, wraps=True
            ),
        ]
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


@click.command("config-schema")
def config_schema() -> None:
    """Print the JSON schema of the `alphalora:` block.

    `axolotl config-schema` prints the host's own options without those of plugins.
    """
    with only_output() as emit:
        from ..planning.config import AlphaLoraConfigBlock

        emit(json.dumps(AlphaLoraConfigBlock.model_json_schema(), indent=2))
