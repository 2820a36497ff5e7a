"""What importing the package costs, and that its layers keep to their direction."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "axolotl_alphalora"


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import axolotl_alphalora", {"torch", "peft", "transformers", "axolotl", "click"}),
        ("import axolotl_alphalora.cli", {"torch", "peft", "transformers", "axolotl", "rich"}),
        ("import axolotl_alphalora.allocation", {"torch", "peft", "transformers", "axolotl"}),
        ("import axolotl_alphalora.spectral", {"peft", "transformers", "axolotl"}),
        ("import axolotl_alphalora.adapter", {"axolotl"}),
        ("import axolotl_alphalora.planning", {"peft", "transformers", "axolotl"}),
        ("import axolotl_alphalora.plugin.request", {"peft", "transformers", "axolotl"}),
    ],
)
def test_imports_stay_cheap_and_the_core_stands_without_the_host(statement, absent):
    assert not absent & loaded_by(statement)


def imported_packages(layer: str) -> set[str]:
    """Subpackages of ours that a layer imports, by reading its source."""
    found = set()
    for path in (PACKAGE / layer).rglob("*.py"):
        depth = len(path.relative_to(PACKAGE).parts)
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == depth:
                names = [f"axolotl_alphalora.{node.module or node.names[0].name}"]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                if name.startswith("axolotl_alphalora."):
                    found.add(name.split(".")[1])
                elif name.split(".")[0] == "axolotl":
                    found.add("axolotl")
    return found - {layer}


@pytest.mark.parametrize(
    ("layer", "allowed"),
    [
        ("spectral", {"blocks", "settings", "storage"}),
        ("allocation", {"blocks", "settings", "spectral", "storage"}),
        ("adapter", {"blocks"}),
    ],
)
def test_imports_run_down_the_flow(layer, allowed):
    assert imported_packages(layer) <= allowed


def test_the_plugin_class_is_found_as_the_host_finds_it():
    from axolotl.integrations.base import BasePlugin, load_plugin

    import axolotl_alphalora

    plugins = [
        value
        for name in dir(axolotl_alphalora)
        if isinstance(value := getattr(axolotl_alphalora, name), type)
        and issubclass(value, BasePlugin)
    ]
    assert [cls.__name__ for cls in plugins] == ["AlphaLoraPlugin"]
    assert type(load_plugin("axolotl_alphalora.AlphaLoraPlugin")) is plugins[0]


def test_an_unknown_name_is_an_attribute_error():
    import axolotl_alphalora

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        axolotl_alphalora.Nothing  # noqa: B018
