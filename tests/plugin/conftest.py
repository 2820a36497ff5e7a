"""A tiny model, its data, and the real host to run them with."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from helpers import settings
from helpers.models import save_tiny_model, tiny_llama


@dataclass
class Run:
    """What one host command left behind."""

    code: int
    log: str
    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def config(self) -> dict:
        return yaml.safe_load((self.folder / "config.yml").read_text())

    @property
    def spied(self) -> dict:
        return json.loads((self.folder / "spy.json").read_text())

    def history(self, checkpoint: int) -> list[dict]:
        state = self.out / f"checkpoint-{checkpoint}" / "trainer_state.json"
        return json.loads(state.read_text())["log_history"]


class Host:
    """Axolotl's command line over one workspace of model and data."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        here = f"{Path(__file__).parent}{os.pathsep}{workspace}"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.env = os.environ | {"PYTHONPATH": here, "PATH": path, "ACCELERATE_USE_CPU": "true"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("host_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self.env,
            text=True,
        )

    def base_config(self) -> dict:
        return {
            "base_model": str(self.workspace / "tiny"),
            "plugins": ["axolotl_alphalora.AlphaLoraPlugin", "spy.SpyPlugin"],
            "adapter": "alphalora",
            "lora_r": 4,
            "lora_alpha": 8,
            "lora_dropout": 0.1,
            "lora_target_linear": True,
            "alphalora": {"experts_per_block": 3},
            "datasets": [
                {
                    "path": str(self.workspace / "data.jsonl"),
                    "ds_type": "json",
                    "type": "alpaca",
                }
            ],
            "dataset_prepared_path": str(self.workspace / "prepared"),
            "dataset_num_proc": 1,
            "val_set_size": 0.1,
            "output_dir": "./out",
            "sequence_len": 256,
            "sample_packing": False,
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 4,
            "num_epochs": 1,
            "optimizer": "adamw_torch",
            "lr_scheduler": "constant",
            "learning_rate": 0.003,
            "bf16": False,
            "fp16": False,
            "tf32": False,
            "attn_implementation": "sdpa",
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "save_steps": 2,
            "eval_steps": 2,
            "seed": 42,
        }

    def importable(self, name: str, source: str) -> None:
        """Put a module on the path of the commands."""
        (self.workspace / f"{name}.py").write_text(source)

    def write(self, folder: Path, **changes) -> Path:
        config = self.base_config() | changes
        path = folder / "config.yml"
        path.write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not ...}))
        return path

    def run(self, folder: Path, verb: str, *options: str, typed: str = "", **changes) -> Run:
        config = self.write(folder, **changes)
        launched = verb in ("train", "evaluate", "inference", "merge-sharded-fsdp-weights")
        launcher = ["--launcher", "python"] if launched else []
        return self.command(folder, verb, str(config), *launcher, *options, typed=typed)

    def command(self, folder: Path, *argv: str, typed: str = "", module: str = "") -> Run:
        log = folder / "log.txt"
        log.unlink(missing_ok=True)
        code = self.ask(folder, argv, input=typed, module=module)
        return Run(code, log.read_text(errors="replace"), folder)

    def start(self, folder: Path, verb: str, *options: str, **changes) -> int:
        """Start a command and return its process's id at once."""
        config = self.write(folder, **changes)
        argv = (verb, str(config), "--launcher", "python", *options)
        return self.ask(folder, argv, background=True)

    def ask(self, folder: Path, argv, **options) -> int:
        request = {"argv": argv, "cwd": str(folder), "log": str(folder / "log.txt"), **options}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def train(self, folder: Path, **changes) -> Run:
        run = self.run(folder, "train", **changes)
        assert run.code == 0, run.log[-6000:]
        return run


@pytest.fixture
def plugin(monkeypatch, tmp_path):
    """Our plugin, loaded by the host in this process, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return settings.register(monkeypatch)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A folder that holds the tiny Llama and no tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_llama().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    workspace = tmp_path_factory.mktemp("host")
    save_tiny_model(workspace / "tiny")
    with (workspace / "data.jsonl").open("w") as file:
        for i in range(40):
            output = f"word{i} " * (1 + i * 7 % 20)
            row = {"instruction": f"Repeat {i}", "input": "", "output": output}
            file.write(json.dumps(row) + "\n")
    server = Host(workspace)
    yield server
    server.process.stdin.close()
    server.process.wait(timeout=30)
