"""What only a machine with several GPUs can show; the benchmark that a person would run there."""

import contextlib
import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from helpers.worlds import in_a_world

ROOT = Path(__file__).parents[2]
BENCHMARK = ["-m", "benchmarks.ranks", "--model", "tiny", "--steps", "3", "--length", "64"]


@pytest.fixture
def report(fresh_process):
    """What a command reports in its last line."""
    return lambda *command: json.loads(fresh_process(*command, cwd=ROOT).stdout.splitlines()[-1])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.untested(
    "Scale-out", "several GPUs (NCCL)", "`torchrun -m benchmarks.ranks` is ready for them"
)
@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero2", "zero3"])
def test_two_gpus_train_like_one(report, engine):
    single = report(*BENCHMARK, "--accumulation", "2")
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    both = report(*launch, *BENCHMARK, "--engine", engine)
    assert both["adapter_is_whole"] and both["ranks"] == 2
    assert both["losses"] == pytest.approx(single["losses"], rel=0.02)


@pytest.mark.works("Scale-out", "`benchmarks.ranks`", "DDP on two CPU ranks: the losses of one")
def test_the_benchmark_runs_on_cpu_ranks(trainer_folder, monkeypatch):
    def report(ranks, *options):
        """What the first rank prints last."""
        printed, error = trainer_folder / f"{ranks}.txt", trainer_folder / f"{ranks}-error.txt"

        def work():
            with printed.open("a") as file, contextlib.redirect_stdout(file):
                import_module("benchmarks.ranks").main()

        monkeypatch.setattr(sys, "argv", [*BENCHMARK[1:], *options])
        in_a_world(ranks, trainer_folder / f"store-{ranks}", work, error)
        assert not error.exists(), error.read_text()
        return json.loads(printed.read_text().splitlines()[-1])

    single, both = report(1, "--accumulation", "2"), report(2)
    assert both["adapter_is_whole"] and both["ranks"] == 2
    assert both["losses"] == pytest.approx(single["losses"], rel=1e-5)
