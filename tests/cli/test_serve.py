"""`alphalora serve`: the command that it prints, and what it starts."""

import json
import os
import shlex
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from axolotl_alphalora.cli import alphalora, serve
from helpers.vllm_layers import modules, save_adapter

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    save_adapter(tmp_path / "adapter", {name: 2 for name in modules()})
    return tmp_path / "adapter"


@pytest.fixture
def started(monkeypatch):
    """The commands that would have taken this process's place."""
    found = []
    monkeypatch.setattr(os, "execv", lambda program, command: found.append(command))
    return found


def installed(monkeypatch, **packages):
    """Have these packages, and not those that are False."""
    real = serve.find_spec

    def find(name):
        return (object() if packages[name] else None) if name in packages else real(name)

    monkeypatch.setattr(serve, "find_spec", find)


def run(*arguments, code=0):
    done = CliRunner().invoke(alphalora, ["serve", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output


def options(line):
    """vLLM's options, by name."""
    parts = shlex.split(line)
    assert parts[:3] == ["python", "-m", "vllm.entrypoints.openai.api_server"]
    return dict(zip(parts[3::2], parts[4::2], strict=True))


def test_the_exact_line_is_printed_whether_vllm_is_here_or_not(folder, started):
    found = options(run(folder, "--print"))
    assert found == {
        "--model": "base",
        "--load-format": "alphalora",
        "--additional-config": json.dumps({"alphalora": str(folder)}),
        "--served-model-name": "adapter",
        "--host": "127.0.0.1",  # vLLM's own default is all of the machine's addresses
        "--port": "8000",
    }
    assert options(run(folder, "--print", "--", "--host", "0.0.0.0"))["--host"] == "0.0.0.0"
    assert started == []


def test_another_base_is_confirmed_by_naming_it(folder):
    found = options(run(folder, "--print", "--base-model", "elsewhere/base"))
    assert found["--model"] == "elsewhere/base"
    assert json.loads(found["--additional-config"])["alphalora_any_base"] is True


def test_its_own_base_needs_no_confirmation_and_keeps_its_revision(folder):
    """Offline vLLM puts the base's directory in the place of its id, which the loader knows."""
    path = folder / "adapter_config.json"
    own = {"base_model_name_or_path": "org/base", "revision": "v2"}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    found = options(run(folder, "--print", "--base-model", "org/base"))
    assert found == options(run(folder, "--print"))
    assert found["--revision"] == "v2"
    assert "alphalora_any_base" not in found["--additional-config"]
    assert "--revision" not in options(run(folder, "--print", "--base-model", "other"))


def test_the_adapters_own_tokenizer_and_revision_are_used(folder):
    (folder / "tokenizer_config.json").write_text("{}")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"revision": "v2"}))
    found = options(run(folder, "--print", "--port", 9000))
    assert found["--tokenizer"] == str(folder)
    assert found["--revision"] == "v2" and found["--port"] == "9000"


def test_vllm_is_started_where_it_is(folder, started, monkeypatch):
    installed(monkeypatch, vllm=True)
    printed = run(folder, "--print", "--", "--max-model-len", 512)
    assert options(printed)["--max-model-len"] == "512"
    run(folder, "--", "--max-model-len", 512)
    assert started == [[sys.executable, *shlex.split(printed)[1:]]]


def test_elsewhere_the_small_server_is_started(folder, started, monkeypatch):
    installed(monkeypatch, vllm=False, fastapi=True, uvicorn=True)
    assert "one request at a time" in run(folder, "--port", 8001)
    file = ROOT / "example_configs" / "serve.py"
    assert started == [[sys.executable, str(file), str(folder), "--port", "8001"]]
    assert "vLLM is not installed" in run(folder, "--", "--max-model-len", 512, code=2)
    assert "vLLM is not installed" in run(folder, "--base-model", "other", code=2)


def test_what_the_small_server_lacks_is_named(folder, started, monkeypatch):
    installed(monkeypatch, vllm=False, fastapi=False, uvicorn=True)
    assert "pip install fastapi uvicorn" in run(folder, code=1)
    assert started == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "LORA"}, "--enable-lora"),
        ({"base_model_name_or_path": None}, "add --base-model"),
    ],
)
def test_what_vllm_cannot_serve_is_said_before_it_starts(folder, changes, message):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert message in run(folder, "--print", code=1)


def test_the_small_server_and_the_study_are_in_the_wheel(fresh_process, tmp_path):
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    name = fresh_process("-c", code, tmp_path, cwd=ROOT).stdout.split()[-1]
    with zipfile.ZipFile(tmp_path / name) as wheel:
        (inside,) = (n for n in wheel.namelist() if n.endswith("example_configs/serve.py"))
        assert wheel.read(inside) == (ROOT / "example_configs" / "serve.py").read_bytes()
        study = "axolotl_alphalora/report/study.json"
        assert wheel.read(study) == (ROOT / study).read_bytes()
    assert serve._SMALL_SERVERS[1] == ROOT / inside
