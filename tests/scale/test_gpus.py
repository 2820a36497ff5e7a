"""What only a machine with several GPUs can show; the benchmark that a person would run there."""

import json
from pathlib import Path

import pytest
import torch

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
def test_the_benchmark_runs_on_cpu_ranks(report):
    single = report(*BENCHMARK, "--accumulation", "2")
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    both = report(*launch, *BENCHMARK)
    assert both["adapter_is_whole"] and both["ranks"] == 2
    assert both["losses"] == pytest.approx(single["losses"], rel=1e-5)
