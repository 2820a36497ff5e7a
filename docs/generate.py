"""Writes into README.md and docs/*.md what the code and the tests say.

    python docs/generate.py            writes the pages
    python docs/generate.py --check    names those that differ, and fails

A part stands between `<!-- name: written by docs/generate.py -->` and `<!-- /name -->`, and `PARTS`
says what is written there. Everything else on a page is written by hand.
"""

import re
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import Any

import click
import yaml

import support

# All that the pages take from the package.
from axolotl_alphalora.allocation import Options, Strategy, registry
from axolotl_alphalora.cli import alphalora
from axolotl_alphalora.planning import AlphaLoraConfigBlock as Block
from axolotl_alphalora.plugin.options import HONOURED
from axolotl_alphalora.plugin.refusals import REFUSED

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.append(str(ROOT))
from benchmarks.study import report  # noqa: E402 (it is not installed)

EXAMPLE = DOCS / "example-strategy"
COMMAND = "python docs/generate.py"
WIDTH = 96

HEAD = """\
plugins: [axolotl_alphalora.AlphaLoraPlugin]
adapter: alphalora
load_in_4bit: true              # or load_in_8bit, or neither
lora_r: 8                       # rank of one expert
lora_alpha: 16                  # experts are scaled with lora_alpha / lora_r
lora_dropout: 0.05
lora_target_linear: true        # or lora_target_modules
alphalora:                      # write only what you change; these are the defaults"""
BUDGETS = ("total_experts", "total_parameters", "memory_mib")


def pages() -> list[Path]:
    """The README and the pages of this folder."""
    return [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def written(text: str) -> str:
    """A page's text with its parts as they should be.

    Raises:
        ValueError: If a part is unknown, or its end is missing.
    """
    found = re.compile(r"(<!-- ([\w-]+): written by [^>]* -->\n)(.*?)(<!-- /\2 -->)", re.S)
    starts = re.findall(r"<!-- ([\w-]+): written by ", text)
    if starts != [part[1] for part in found.findall(text)]:
        raise ValueError(f"of the parts {', '.join(starts)} one has no end")
    if unknown := set(starts) - set(PARTS):
        raise ValueError(f"nobody writes {', '.join(sorted(unknown))}: add it to PARTS")
    return found.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}\n{part[4]}", text)


def settings() -> str:
    """The YAML with every key of the block, its default and its meaning."""
    lines = HEAD.splitlines()
    defaults = Block().model_dump()
    for key, field in Block.model_fields.items():
        value = defaults[key]
        if key == "allocation":
            value = value["strategy"]
        shown = f"  # {key}:" if key in BUDGETS else f"  {key}: {_yaml(value)}"
        lines += _commented(shown, field.description or "")
    return "\n".join(["```yaml", *lines, "```"])


def allocation() -> str:
    """The YAML of the strategy `alphalora` with its options."""
    lines = ["alphalora:", "  allocation:", "    strategy: alphalora"]
    for name, field in registry().get("alphalora").fields.items():
        lines += _commented(f"    {name}: {_yaml(field.default)}", field.description or "")
    return "\n".join(["```yaml", *lines, "```"])


def _commented(shown: str, comment: str) -> Iterator[str]:
    """A line of YAML with a comment beside it, and below it what does not fit."""
    for part in wrap(comment, WIDTH - 34):
        yield f"{shown:<32}# {part}"
        shown = ""


def honoured() -> str:
    """The host's options that are honoured."""
    rows = [f"| `{key}` | {meaning} |" for key, meaning in HONOURED.items()]
    return "\n".join(["| option | meaning |", "| --- | --- |", *rows])


def refused() -> str:
    """The host's options that are refused; neighbours with the same reason share a row."""
    lines = ["| option | why, and what to do |", "| --- | --- |"]
    for said, group in groupby(REFUSED, lambda row: f"{row.reason}. {row.remedy}."):
        lines.append(f"| {', '.join(f'`{row.key}`' for row in group)} | {said} |")
    return "\n".join(lines)


def strategies() -> str:
    """What each strategy goes by."""
    uses = {"needed": "needed", "optional": "optional", "none": "none: it has its own numbers"}
    needs = {
        "nothing": "nothing",
        "quality": "the weights",
        "sensitivity": "training data and a loaded model",
        "activations": "training data and a loaded model",
    }
    lines = ["| strategy | goes by | from | measures | budget |", "| --- " * 5 + "|"]
    for one in _strategies():
        use = uses[one.options().budget_use]
        cells = f"`{one.name}`", one.summary, one.reference or "", needs[one.needs], use
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def strategy_options() -> str:
    """The options of each strategy that has some."""
    lines = ["| strategy | option | default | meaning |", "| --- " * 4 + "|"]
    for one in _strategies():
        name = f"`{one.name}`"
        for option, field in one.options.own_fields().items():
            default = _yaml(field.default)
            lines.append(f"| {name} | `{option}` | `{default}` | {field.description} |")
            name = ""
    scored = ", ".join(f"`{name}`" for name in registry().names() if registry().get(name).scored)
    for option, field in Options.model_fields.items():
        default = _yaml(field.default)
        lines.append(f"| {scored} | `{option}` | `{default}` | {field.description} |")
        scored = ""
    return "\n".join(lines)


def _strategies() -> list[Strategy]:
    """The built-in strategies."""
    known = map(registry().get, registry().names())
    return [one.strategy for one in known if one.built_in]


def commands() -> str:
    """The help of every command."""
    context = click.Context(alphalora, info_name="alphalora")
    lines = []
    for name in alphalora.list_commands(context):
        command = alphalora.get_command(context, name)
        assert command is not None and command.help is not None
        arguments = [p for p in command.params if isinstance(p, click.Argument)]
        options = [p for p in command.params if isinstance(p, click.Option)]
        usage = ["alphalora", name, *(["[OPTIONS]"] if options else []), *map(_metavar, arguments)]
        lines += [f"## alphalora {name}", "", "```text", " ".join(usage), "```", ""]
        lines += [_paragraphs(command.help), ""]
        if options:
            lines += ["| option | meaning |", "| --- | --- |"]
            lines += [_option(option) for option in options]
            lines.append("")
    return "\n".join(lines).strip()


def _metavar(argument: click.Argument) -> str:
    if argument.metavar:
        return argument.metavar
    name = (argument.name or "").upper()
    name = name if argument.required else f"[{name}]"
    return f"{name}..." if argument.nargs == -1 else name


def _option(option: click.Option) -> str:
    kind = option.type
    if option.is_flag:
        value = ""
    elif option.metavar:
        value = option.metavar
    elif isinstance(kind, click.Choice):
        value = "|".join(map(str, kind.choices))
    else:
        value = {"integer range": "N", "float range": "X", "text": "TEXT"}.get(kind.name, "PATH")
    names = "`, `".join(f"{name} {value}".strip() for name in option.opts)
    meaning = " ".join((option.help or "").split())
    if option.required:
        meaning += " Required."
    elif option.show_default:
        meaning += f" Default: `{option.default}`."
    return f"| `{_cell(names)}` | {_cell(meaning)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _paragraphs(text: str) -> str:
    """A docstring with each paragraph on one line."""
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip()))


def example() -> str:
    """The files of the package with a strategy of its own."""
    lines = []
    for file, language in (("pyproject.toml", "toml"), ("alphalora_width.py", "python")):
        lines += [f"[`{file}`]({EXAMPLE.name}/{file}):", "", f"```{language}"]
        lines += [(EXAMPLE / file).read_text().strip(), "```", ""]
    return "\n".join(lines).strip()


def _yaml(value: Any) -> str:
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


PARTS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "allocation": allocation,
    "honoured": honoured,
    "refused": refused,
    "strategies": strategies,
    "strategy-options": strategy_options,
    "commands": commands,
    "example": example,
    "support": support.tables,
    "works": support.summary,
    **report.parts(),
}


def main(check: bool) -> int:
    """Write the pages, or name those that differ; returns the exit status."""
    differ = [page for page in pages() if written(page.read_text()) != page.read_text()]
    for page in differ:
        if not check:
            page.write_text(written(page.read_text()))
        print(f"{page.relative_to(ROOT)} {'differs' if check else 'written'}")
    if check and differ:
        print(f"run `{COMMAND}`")
    return int(check and bool(differ))


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
