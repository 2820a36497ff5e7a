"""What importing the package costs, and that its layers keep to their direction."""

import ast
import subprocess
import sys
import tomllib
from multiprocessing import get_context
from pathlib import Path

import pytest

import conftest

PACKAGE = Path(__file__).parents[1] / "axolotl_alphalora"


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import axolotl_alphalora", {"torch", "peft", "transformers", "axolotl", "click"}),
        ("import axolotl_alphalora.cli", {"torch", "peft", "transformers", "axolotl", "rich"}),
        ("import axolotl_alphalora.allocation", {"torch", "peft", "transformers", "axolotl"}),
        (
            "from axolotl_alphalora.allocation import registry; registry().names()",
            {"torch", "peft", "transformers", "axolotl"},
        ),
        (
            "from axolotl_alphalora.cli import alphalora; alphalora(['strategies'], "
            "standalone_mode=False)",
            {"torch", "peft", "transformers", "axolotl"},
        ),
        ("import axolotl_alphalora.sensitivity", {"peft", "transformers", "axolotl"}),
        ("import axolotl_alphalora.spectral", {"peft", "transformers", "axolotl"}),
        ("import axolotl_alphalora.adapter", {"axolotl"}),
        (
            "import benchmarks.decode, benchmarks.memory_limit, benchmarks.scaling, "
            "benchmarks.startup, benchmarks.targets, benchmarks.training_step",
            {"axolotl"},
        ),
        ("import axolotl_alphalora.inspection", {"peft", "transformers", "axolotl"}),
        ("import axolotl_alphalora.planning", {"torch", "peft", "transformers", "axolotl"}),
    ],
)
def test_imports_stay_cheap_and_the_core_stands_without_the_host(statement, absent):
    assert not absent & loaded_by(statement)


REGISTRATION = "axolotl_alphalora.registration"
ORDERS = {
    "ours first": "import axolotl_alphalora; assert 'peft' not in sys.modules; import peft",
    "PEFT first": "import peft, axolotl_alphalora",
    "the adapter": "import axolotl_alphalora.adapter, peft",
    "looked for before": "import axolotl_alphalora, importlib.util; "
    "assert importlib.util.find_spec('peft').origin; from peft.tuners import lora; import peft",
}


def check_registration(order):
    """In a process that has forgotten the two, and still has what they need."""
    for name in [n for n in sys.modules if n.partition(".")[0] in ("peft", "axolotl_alphalora")]:
        del sys.modules[name]
    sys.meta_path[:] = [f for f in sys.meta_path if type(f).__module__ != REGISTRATION]
    names = {"sys": sys}
    exec(order, names)
    peft = names["peft"]
    adapter = sys.modules["axolotl_alphalora.adapter"]
    assert peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING["ALPHALORA"] is adapter.AlphaLoraConfig
    assert peft.__spec__.loader is peft.__loader__
    assert type(peft.__loader__).__module__ != REGISTRATION


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("order", ORDERS)
def test_peft_knows_the_method_in_whatever_order_the_two_are_imported(order):
    import peft  # noqa: F401  its dependencies take long

    child = get_context("fork").Process(target=check_registration, args=(ORDERS[order],))
    child.start()
    child.join()
    assert child.exitcode == 0


class Imports(ast.NodeVisitor):
    """Collects what a module imports when it runs, apart from what only type checkers read."""

    def __init__(self) -> None:
        self.run: list[ast.Import | ast.ImportFrom] = []
        self.checked: list[ast.Import | ast.ImportFrom] = []
        self._found = self.run

    def visit_If(self, node: ast.If) -> None:
        outer = self._found
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            self._found = self.checked
        for child in node.body:
            self.visit(child)
        self._found = outer
        for child in node.orelse:
            self.visit(child)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        self._found.append(node)

    visit_ImportFrom = visit_Import


def imported_packages(layer: str) -> tuple[set[str], set[str]]:
    """Subpackages of ours that a layer imports when it runs, and for types, by its source."""
    found: tuple[set[str], set[str]] = set(), set()
    for path in (PACKAGE / layer).rglob("*.py"):
        depth = len(path.relative_to(PACKAGE).parts)
        imports = Imports()
        imports.visit(ast.parse(path.read_text()))
        for into, nodes in zip(found, (imports.run, imports.checked), strict=True):
            for node in nodes:
                into.update(_packages(node, depth))
    return found[0] - {layer}, found[1] - {layer}


def _packages(node: ast.Import | ast.ImportFrom, depth: int) -> set[str]:
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif node.level == 0:
        names = [node.module or ""]
    elif node.level == depth:
        names = [f"axolotl_alphalora.{node.module or node.names[0].name}"]
    parts = [name.split(".") for name in names]
    ours = {part[1] for part in parts if part[0] == "axolotl_alphalora" and len(part) > 1}
    ours.discard("__version__")
    return ours | {"axolotl" for part in parts if part[0] == "axolotl"}


@pytest.mark.parametrize(
    ("layer", "run", "checked"),
    [
        ("spectral", {"blocks", "settings", "storage"}, set()),
        ("sensitivity", {"blocks"}, set()),
        ("allocation", {"blocks", "files", "settings"}, set()),
        ("adapter", {"blocks", "saved_format"}, set()),
        ("trainer", {"adapter", "blocks"}, set()),
        ("inspection", {"blocks", "saved_format", "spectral"}, {"adapter"}),
        (
            "planning",
            {
                "adapter",
                "allocation",
                "blocks",
                "files",
                "progress",
                "sensitivity",
                "settings",
                "spectral",
                "hosts",
            },
            set(),
        ),
    ],
)
def test_imports_run_down_the_flow(layer, run, checked):
    found, for_types = imported_packages(layer)
    assert found <= run
    assert for_types <= run | checked


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


@pytest.mark.parametrize(
    ("importer", "skipped"),
    [
        ("tests/adapter/test_layer.py", True),
        ("axolotl_alphalora/plugin/loading.py", True),
        ("axolotl_alphalora/spectral/model.py", False),
        ("axolotl_alphalora/cli/plan.py", False),
    ],
)
def test_only_what_a_test_wants_and_not_what_the_core_wants_is_skipped_without_the_host(
    monkeypatch, importer, skipped
):
    code = compile("import no_such_package", PACKAGE.parent / importer, "exec")
    with pytest.raises(ModuleNotFoundError) as caught:
        exec(code)
    for without_the_host in (True, False):
        monkeypatch.setattr(conftest, "WITHOUT_THE_HOST", without_the_host)
        want = "no_such_package" if skipped and without_the_host else None
        assert conftest.wanted_package(caught.value) == want


def test_every_module_is_written_for_the_oldest_python():
    for path in PACKAGE.rglob("*.py"):
        ast.parse(path.read_text(), path.name, feature_version=(3, 11))


def test_the_resolver_is_told_the_hosts_versions_as_the_extra_has_them():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    (host,) = project["project"]["optional-dependencies"]["axolotl"]
    overrides = project["tool"]["uv"]["override-dependencies"]
    assert f"{host}; python_version >= '3.12'" in overrides
