"""Paths with `~`, and YAML files that are none: named, with what is wrong."""

import json
import shutil

import pytest

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
