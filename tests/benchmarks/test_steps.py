"""What benchmarks count and compute is what they say, on functions whose numbers are known."""

import multiprocessing
import os
import signal
import time
import weakref
from argparse import Namespace
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from benchmarks.common import load_shape, ratios, spread
from benchmarks.contestants import Absent, Contestant
from benchmarks.steps import (
    Worker,
    count_operators,
    differences,
    in_turn,
    kept_bytes,
    slope,
    take_steps,
)
from helpers import stepping

starts_processes = pytest.mark.usefixtures("fresh_process")


def names_of(work):
    """The operators that a function runs."""
    seen = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Names():
        work()
    return seen


def test_operators_of_forward_and_backward_are_counted_one_by_one():
    w, x = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5)

    def forward():
        return (w @ x).sum()

    assert names_of(forward) == ["mm", "sum"]
    assert count_operators(forward) == 2
    # The sum's gradient: ones, expanded; the product's: x transposed, times it; w.grad, detached.
    backward = ["ones_like", "expand", "t", "mm", "detach"]
    assert names_of(lambda: forward().backward()) == ["mm", "sum", *backward]
    w.grad = None
    assert count_operators(lambda: forward().backward()) == 7


def test_operators_of_a_recomputed_forward_are_counted_again():
    x = torch.randn(4, requires_grad=True)

    def block(x):
        return x.sin().exp()

    def recomputed():
        checkpoint(block, x, use_reentrant=False).sum().backward()

    assert names_of(lambda: block(x).sum().backward()).count("sin") == 1
    assert names_of(recomputed).count("sin") == 2
    assert count_operators(recomputed) == len(names_of(recomputed))


@pytest.mark.parametrize("places", [[1, 2, 4, 8, 16], [4, 8], [128, 256, 1024]])
def test_the_slope_of_a_line_is_found_and_that_of_others_is_numpy_s(places):
    numpy = pytest.importorskip("numpy")
    assert slope(places, [7 - 0.25 * place for place in places]) == pytest.approx(-0.25)
    values = [place**1.5 + (-1) ** place for place in places]
    assert slope(places, values) == pytest.approx(numpy.polyfit(places, values, 1)[0])


def test_ratios_and_differences_are_of_the_same_turn():
    mine, theirs = [6.0, 1.0, 9.0], [2.0, 4.0, 3.0]
    assert ratios(mine, theirs) == [3.0, 0.25, 3.0]
    assert differences(mine, theirs) == [4.0, -3.0, 6.0]
    with pytest.raises(ValueError):
        ratios(mine, theirs[:2])


def test_a_spread_is_the_median_and_the_range():
    assert spread([3.0, 1.0, 2.0, 10.0], 1) == "2.5 (1.0 to 10.0)"


def test_every_step_is_taken_once_a_turn_and_each_comes_first_in_some():
    order = []

    def stepping(name):
        def step():
            order.append(name)
            return float(len(order))

        return SimpleNamespace(step=step)

    times = in_turn({name: stepping(name) for name in "abc"}, 3)
    assert order == list("abcbcacab")
    assert times == {"a": [1.0, 6.0, 8.0], "b": [2.0, 4.0, 9.0], "c": [3.0, 5.0, 7.0]}


class Model(nn.Module):
    """Takes what a language model takes; one matrix, whose product is squared."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((6, 3), 0.5))

    def forward(self, input_ids, labels, use_cache):
        hidden = torch.nn.functional.one_hot(input_ids, 6).float() @ self.weight
        self.dtype = hidden.dtype
        return SimpleNamespace(loss=hidden.square().sum())


IDS = torch.tensor([[1, 2, 3, 4]])


def test_kept_bytes_are_those_of_the_activations_without_the_weights():
    # One row of 6 for each token, for the product's gradient; its 3 numbers, for the square's.
    assert kept_bytes(Contestant(Model(), IDS)) == 4 * (6 + 3) * 4


def test_counting_what_is_kept_keeps_nothing():
    model, nodes = Model(), []
    whole = model.forward

    def forward(**batch):
        out = whole(**batch)
        out.loss = out.loss.exp()  # whose backward needs its output
        probe = type("Probe", (), {})()
        out.loss.grad_fn.metadata["probe"] = probe
        nodes.append(weakref.ref(probe))
        return out

    model.forward = forward
    kept_bytes(Contestant(model, IDS))
    assert nodes[0]() is None


def test_a_step_trains_and_adds_the_extra_loss():
    model = Model()
    run = Contestant(model, IDS, extra_loss=lambda: 100 * model.weight.sum())
    assert run.parameters == 18
    assert run.step() > 0
    assert run.last_loss.item() == pytest.approx(12 * 0.25 + 100 * 18 * 0.5)
    assert (model.weight < 0.5).all()
    assert model.weight.grad is None


@pytest.mark.parametrize("bf16", [False, True])
def test_only_bf16_runs_under_autocast_and_the_adapter_stays_as_it_is(bf16):
    run = Contestant(Model(), IDS, bf16)
    run.step()
    assert run.model.dtype == (torch.bfloat16 if bf16 else torch.float32)
    assert run.model.weight.dtype == torch.float32


@starts_processes
def test_each_works_in_a_process_of_its_own_until_it_is_closed():
    one, other = Worker(stepping.counting, 0), Worker(stepping.counting, 5)
    processes = [one.facts, other.facts]
    assert len({os.getpid(), *processes}) == 3
    assert in_turn({"a": one, "b": other}, 3) == {"a": [0.0, 1.0, 2.0], "b": [5.0, 6.0, 7.0]}
    one.close()
    assert [psutil.pid_exists(process) for process in processes] == [False, True]
    other.close()
    assert not psutil.pid_exists(other.facts)


@starts_processes
def test_what_cannot_be_made_says_so_here():
    with pytest.raises(Absent, match="no such model"):
        Worker(stepping.absent, "no such model")


@starts_processes
@pytest.mark.parametrize("happens", ["ends", "is killed"])
def test_a_process_that_ends_is_not_waited_for(happens):
    with closing(Worker(stepping.counting, 0)) as worker:
        if happens == "is killed":
            os.kill(worker.facts, signal.SIGKILL)
            while psutil.pid_exists(worker.facts):
                time.sleep(0.01)
        with pytest.raises(BrokenProcessPool):
            for _ in range(4):
                worker.step()


@starts_processes
def test_other_errors_are_its_own():
    with pytest.raises(TypeError):
        Worker(stepping.counting, "no number")


@starts_processes
def test_a_contestant_counts_the_same_alone_and_beside_others():
    options = Namespace(
        model="tiny", dtype="fp32", device="cpu", nf4=False, batch=1, length=8, dropout=0.05,
        experts=3, rank=4, top_k=2, segments=1, checkpointing=False, limit_gib=None, repeats=2,
    )  # fmt: skip
    names = ["none", "experts", "experts-triton"]
    alone, absent, times = take_steps(names, options)
    assert not multiprocessing.active_children()
    assert list(absent) == ["experts-triton"] and "CUDA" in absent["experts-triton"]
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in times.values())
    beside, _, _ = take_steps(names, options, load_shape("tiny", "fp32", "cpu"))
    assert alone == beside
    assert alone["experts"]["parameters"] > 0 == alone["none"]["parameters"]
