"""Which releases of Axolotl the plugin works with."""

import os
import subprocess
import sys
from contextlib import ExitStack
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from safetensors.torch import load_file

from axolotl_alphalora.plugin import host as plugin_host

OTHER = os.environ.get("ALPHALORA_OTHER_HOST")


@pytest.mark.refused("Host versions", "Axolotl 0.19 and older", "when the plugin is imported")
def test_an_older_host_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr(plugin_host, "version", lambda name: "0.19.0")
    with pytest.raises(RuntimeError, match=r"needs Axolotl 0.20 or newer, and 0.19.0 is installed"):
        plugin_host.check_host()
    for found in ("0.20.0", "0.21.0"):
        monkeypatch.setattr(plugin_host, "version", lambda name, found=found: found)
        plugin_host.check_host()


def test_a_newer_host_is_warned_of_with_what_to_do(monkeypatch):
    said = []
    logger = SimpleNamespace(warning=lambda text, *values: said.append(text % values))
    monkeypatch.setattr("axolotl.utils.logging.get_logger", lambda name: logger)
    for found in ("0.21.9", "0.21.0.dev1"):
        monkeypatch.setattr(plugin_host, "version", lambda name, found=found: found)
        plugin_host.check_host()
    assert not said
    monkeypatch.setattr(plugin_host, "version", lambda name: "0.22.1")
    plugin_host.check_host()
    (line,) = said
    assert "tested with Axolotl up to 0.21.x, and 0.22.1 is installed" in line
    assert "report it among the issues of axolotl-alphalora" in line


@pytest.mark.skipif(
    OTHER is None, reason="ALPHALORA_OTHER_HOST names no other environment's Python"
)
@pytest.mark.untested(
    "Host versions", "Axolotl 0.20", "name the Python of its environment in ALPHALORA_OTHER_HOST"
)
def test_a_run_in_another_host_s_environment(host, tmp_path):
    config = host.write(tmp_path, max_steps=2, load_in_4bit=True, loraplus_lr_ratio=4.0)
    path = f"{Path(__file__).parents[2]}{os.pathsep}{host.env['PYTHONPATH']}"
    subprocess.run(
        [OTHER, "-m", "axolotl.cli.train", str(config)],
        cwd=tmp_path,
        env=host.env | {"PYTHONPATH": path},
        check=True,
    )
    assert load_file(tmp_path / "out" / "adapter_model.safetensors")


def command(name, *inside):
    """A click command of that name, with commands in it."""
    group = click.Group(name)
    for part in inside:
        group.add_command(part)
    return group


def verb_in(*commands):
    """The running verb in the innermost of nested click commands."""
    with ExitStack() as stack:
        context = None
        for one in commands:
            context = click.Context(one, parent=context, info_name=one.name)
            stack.enter_context(context)
        return plugin_host.running_verb()


def test_the_verb_is_that_of_the_host_s_command_line(monkeypatch):
    serve, alphalora = command("vllm-serve"), command("alphalora", command("export"))
    host = command("axolotl", serve, alphalora)
    monkeypatch.setitem(sys.modules, "axolotl.cli.main", SimpleNamespace(cli=host))
    assert verb_in(host, serve) == "vllm_serve"
    assert verb_in(host, alphalora, alphalora.commands["export"]) == "alphalora"
    assert verb_in(alphalora, alphalora.commands["export"]) is None
    assert verb_in(host) is None


@pytest.mark.parametrize(
    ("module", "verb"),
    [
        ("axolotl.cli.evaluate", "evaluate"),
        ("axolotl.cli.train", "train"),
        ("axolotl.cli.utils.load", None),
        ("pytest.__main__", None),
        (None, None),
    ],
)
def test_under_a_launcher_the_verb_is_the_main_module_s(monkeypatch, module, verb):
    spec = None if module is None else ModuleSpec(module, None)
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))
    assert plugin_host.running_verb() == verb
