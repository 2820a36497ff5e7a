"""Held-out losses are the model's own, and routers are read on the held-out rows."""

import pytest
import torch

from axolotl_alphalora.adapter import find_balancer
from benchmarks.study.measure import held_out, mean_loss
from benchmarks.study.methods import EXPERTS, METHODS


def test_losses_are_those_of_the_model(make_bench):
    bench = make_bench()
    found = held_out(METHODS["uniform"](bench).model, bench.rows, "cpu")["held_out"]
    own = []
    for task in dict.fromkeys(row.task for row in bench.rows):
        for row in (row for row in bench.rows if row.task == task):
            inputs = row.sample().inputs
            with torch.no_grad():
                own.append(bench.model(**inputs).loss.item() * row.tokens)
    assert found["rows"] == pytest.approx(own, rel=1e-4)
    assert found["loss"] == pytest.approx(sum(own) / sum(found["labels"]), rel=1e-4)
    assert set(found["by_task"]) == {"add", "subtract"}


def test_routers_are_read_on_the_held_out_rows_alone(make_bench):
    bench = make_bench()
    model = METHODS["uniform"](bench).model
    first = held_out(model, bench.rows, "cpu")["routers"]
    mean_loss(model, bench.rows[:2], "cpu")
    assert held_out(model, bench.rows, "cpu")["routers"] == first
    assert 0 < first["router_entropy"] <= 1 and 0 <= first["specialisation"] <= 1
    assert 0 <= first["dead_experts"] <= first["dead_worst"] < 1
    for parameter in (p for n, p in model.named_parameters() if "router" in n):
        torch.nn.init.zeros_(parameter)
    even = held_out(model, bench.rows, "cpu")["routers"]
    assert even["router_entropy"] == pytest.approx(1.0, abs=1e-4)
    assert even["dead_worst"] == pytest.approx((EXPERTS - 2) / EXPERTS)  # ties go to the first two
    assert find_balancer(model).usage == {}


def test_a_lora_has_no_routers(make_bench):
    bench = make_bench()
    assert held_out(METHODS["lora-r8"](bench).model, bench.rows[:2], "cpu")["routers"] is None
