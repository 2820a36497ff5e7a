"""What counting the routers' decisions costs of a training step.

    python -m benchmarks.router_statistics --repeats 15
    python -m benchmarks.router_statistics --model DIR --batch 4 --length 2048 --checkpointing

Steps with and without the counting alternate in one process: forward, backward, SGD. Prints the
medians, and the median of the ratios of neighbouring steps with the range of their middle half.
Because that is lost in the noise of a busy machine, the counting of one step is also timed alone:
adding up the routers' sums, which are there anyway, because the load-balancing loss needs them.
"""

from __future__ import annotations

import argparse
import time
from statistics import median, quantiles
from typing import Any

import torch
from peft import get_peft_model

from axolotl_alphalora.adapter import AlphaLoraConfig, find_balancer, find_routers
from axolotl_alphalora.adapter.usage import UsageMeter

from .common import load_shape, machine, random_ids, smollm2, spread


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a directory, a hub id or a shape; SmolLM2-135M-Instruct")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--experts", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--logging-steps", type=int, default=10)
    parser.add_argument("--checkpointing", action="store_true")
    wanted = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "bf16" if device == "cuda" else "fp32"
    print(machine(("torch", "transformers", "peft")))
    base = load_shape(wanted.model or smollm2(), dtype, device)
    config = AlphaLoraConfig(r=8, num_experts=wanted.experts, target_modules="all-linear")
    model: Any = get_peft_model(base, config).train()
    if wanted.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    ids = random_ids(base, wanted.batch, wanted.length, device)
    balancer = find_balancer(model)
    assert balancer is not None
    meter, routers = UsageMeter(), find_routers(model)

    def step(counting: bool) -> float:
        balancer.usage = {"train": meter} if counting else {}
        start = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for counting in (False, True):
        step(counting)
    with_it, without, reading = [], [], []
    for number in range(wanted.repeats):
        order = (True, False) if number % 2 else (False, True)
        taken = {counting: step(counting) for counting in order}
        with_it.append(taken[True])
        without.append(taken[False])
        start = time.perf_counter()
        assert len(meter.pop(routers)) == len(routers)
        reading.append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(with_it, without, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    print(
        f"{len(routers)} routers, {wanted.batch} x {wanted.length} tokens, {wanted.repeats} pairs"
    )
    print(f"step without counting, s: {spread(without, 3)}")
    print(f"step with counting, s:    {spread(with_it, 3)}")
    print(f"ratio: {median(ratios):.4f} (middle half {low:.4f} to {high:.4f})")
    alone = counting_alone(list(routers), wanted, device)
    share = 100 * median(alone) / median(without)
    print(f"counting alone, ms: {spread([1e3 * t for t in alone])}, {share:.2f} % of a step")
    share = median(reading) / wanted.logging_steps / median(without)
    print(
        f"reading them at a log: {1e3 * median(reading):.1f} ms, {100 * share:.2f} % of a step "
        f"with logging_steps {wanted.logging_steps}"
    )


def counting_alone(routers: list[str], wanted: argparse.Namespace, device: str) -> list[float]:
    """Seconds that adding up one step's sums takes, without the model around it."""
    sums = {name: torch.rand(4 * wanted.experts + 2, device=device) for name in routers}
    meter, taken = UsageMeter(), []
    for _ in range(wanted.repeats + 1):
        start = time.perf_counter()
        meter.add(sums)
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return taken[1:]


if __name__ == "__main__":
    main()
