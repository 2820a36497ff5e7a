"""The checks of what we rely on of the hosts, by boundary file and name."""

import ast
import inspect
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from helpers.models import tiny_llama_config

PACKAGE = Path(__file__).parents[3] / "axolotl_alphalora"
BOUNDARIES = {
    "accelerate": PACKAGE / "hosts" / "accelerate.py",
    "constants": PACKAGE / "hosts" / "constants.py",
    "peft": PACKAGE / "hosts" / "peft.py",
    "torch": PACKAGE / "hosts" / "torch.py",
    "transformers": PACKAGE / "hosts" / "transformers.py",
    "axolotl": PACKAGE / "plugin" / "host.py",
}
CHECKS: dict[tuple[str, str], Callable[[], None]] = {}


def checks(file: str, *names: str):
    """A check of names of a boundary file."""

    def take(check):
        for name in names or (check.__name__,):
            assert (file, name) not in CHECKS
            CHECKS[file, name] = check
        return check

    return take


def names_of(file: str) -> set[str]:
    """What a boundary file imports from its host or defines, by its source."""
    found = set()
    for node in ast.parse(BOUNDARIES[file].read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{file}."):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            found |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def takes(function: Callable, *names: str) -> None:
    """A function that can be called with these, by position in this order."""
    found = list(inspect.signature(function).parameters)
    assert [name for name in found if name in names] == list(names), f"{function}: {found}"


def tiny(**changes) -> LlamaForCausalLM:
    with torch.device("meta"):
        return LlamaForCausalLM(tiny_llama_config(**changes))
