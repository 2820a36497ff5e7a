"""Paths with `~`, files that cannot be written, and YAML files that are none: named, with why."""

import json
import shutil

import pytest

from axolotl_alphalora.allocation import Plan
from axolotl_alphalora.cli import plan as plan_command
from helpers.inspecting import write_adapter


@pytest.fixture
def home(tmp_path, monkeypatch, model):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(model, tmp_path / "tiny")
    write_adapter(tmp_path / "adapter", [1, 2])
    (tmp_path / "config.yml").write_text("base_model: ~/tiny\nlora_target_linear: true\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    return tmp_path


def test_the_home_directory_is_read_in_every_path(home, run):
    made = run("plan", "~/tiny", "--output", "~/plan.json", "--plot", "~/plan.html")
    assert made.exit_code == 0, made.output
    assert json.loads((home / "plan.json").read_text())["base_model"] == str(home / "tiny")
    assert (home / "plan.html").is_file()
    for arguments in (
        ["analyze", "~/tiny", "--plot", "~/analysis.html"],
        ["plan", "~/tiny", "--as-lora", "--output", "~/lora.yml"],
        ["inspect", "~/adapter", "--plot", "~/experts.html"],
    ):
        done = run(*arguments)
        assert done.exit_code == 0, done.output
        assert (home / arguments[-1].removeprefix("~/")).is_file()
    options = ["--data", "~/rows.jsonl", "--eval-data", "~/rows.jsonl", "--base-model", "~/gone"]
    done = run("export", "~/adapter", "--output", "~/lora", *options)
    assert f"{home}/gone" in done.output and "~" not in done.output


WRITING = {
    "plan": (["plan", "config.yml"], ["--output", "--plot"]),
    "as a LoRA": (["plan", "config.yml", "--as-lora"], ["--output"]),
    "analyze": (["analyze", "tiny"], ["--plot"]),
    "inspect": (["inspect", "adapter", "--data", "rows.jsonl"], ["--plot"]),
    "export": (["export", "adapter", "--output", "lora", "--data", "rows.jsonl"], ["--gguf"]),
    "probe": (["probe", "adapter", "--write", "--data", "rows.jsonl"], ["--probe"]),
    "quickstart": (["quickstart"], ["--json"]),
}


@pytest.mark.parametrize("command", WRITING)
def test_a_file_that_cannot_be_written_is_named_before_any_work(home, run, monkeypatch, command):
    monkeypatch.chdir(home)
    monkeypatch.setattr("axolotl_alphalora.quickstart.run.run_quickstart", lambda **_: None)
    arguments, options = WRITING[command]
    for option in options:
        done = run(*arguments, option, "rows.jsonl/out.html")
        assert done.exit_code == 2, done.output
        assert f"{option} rows.jsonl/out.html cannot be written (Not a directory)" in " ".join(
            done.output.replace("│", "").split()
        )


@pytest.mark.parametrize("command", [name for name in WRITING if name != "quickstart"])
def test_what_is_read_is_not_written_over(home, run, monkeypatch, command):
    monkeypatch.chdir(home)
    arguments, options = WRITING[command]
    source = next(name for name in reversed(arguments) if (home / name).exists())
    before = (home / source).read_text() if (home / source).is_file() else None
    (home / "link.html").symlink_to(source)
    for option in options:
        done = run(*arguments, option, "link.html")
        assert done.exit_code == 2, done.output
        if before is not None:
            assert f"{option} link.html is what is read" in done.output
            assert (home / source).read_text() == before


def test_two_outputs_do_not_go_into_one_file(home, run):
    done = run("plan", home / "tiny", "--output", home / "a.html", "--plot", home / "a.html")
    assert done.exit_code == 2 and "is the file of --output" in done.output


@pytest.mark.parametrize("compare", [[], ["--compare", "uniform"]])
def test_a_plan_is_saved_before_it_is_drawn(home, run, monkeypatch, compare):
    def fail(*_):
        raise OSError("the disk is full")

    for name in ("save_plan", "save_comparison"):
        monkeypatch.setattr(plan_command, name, fail)
    output, plot = home / "plan.json", home / "plan.html"
    done = run("plan", home / "tiny", *compare, "--output", output, "--plot", plot)
    assert done.exit_code == 1 and "the disk is full" in done.output
    assert Plan.load(output).total_experts == 20


BAD = {
    "UTF-16": ("base_model: x\n".encode("utf-16"), "is not UTF-8 text (it is UTF-16)"),
    "another encoding": ("base_model: ä\n".encode("latin-1"), "is not UTF-8 text"),
    "tabs": (b"base_model: x\nalphalora:\n\ttop_k: 2\n", "takes no tabs"),
    "no YAML": (b"base_model: [x\n", "is not YAML"),
    "empty": (b"", "it is empty"),
    "comments alone": (b"# base_model: x\n", "it is empty"),
    "a list": (b"- base_model: x\n", "it holds a list and no keys"),
    "a text": (b"base_model\n", "it holds a str and no keys"),
}


@pytest.mark.parametrize("bad", BAD)
def test_each_command_names_a_yaml_that_cannot_be_read(tmp_path, run, bad):
    content, message = BAD[bad]
    path = tmp_path / "config.yml"
    path.write_bytes(content)
    write_adapter(tmp_path / "adapter", [1, 2])
    adapter = tmp_path / "adapter"
    for arguments in (
        ["plan", path],
        ["plan", path, "--compare", "uniform"],
        ["inspect", adapter, "--data", path],
        ["export", adapter, "--output", tmp_path / "lora", "--data", path],
    ):
        done = run(*arguments)
        assert done.exit_code == 1, done.output
        assert str(path) in done.output and message in done.output
        assert "Traceback" not in done.output
