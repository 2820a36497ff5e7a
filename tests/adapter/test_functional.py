"""Routing and the load-balancing loss, as functions."""

import pytest
import torch

from axolotl_alphalora.adapter.functional import gate, load_balancing_loss, mix_experts, route
from axolotl_alphalora.adapter.usage import router_sums
from helpers import reference


@pytest.mark.parametrize("top_k", [2, 3, 5])
def test_gates_sum_to_one_over_the_chosen_experts(top_k):
    logits = torch.randn(7, 5)
    gates, probabilities, selected = route(logits, top_k)
    torch.testing.assert_close(gates.sum(-1), torch.ones(7))
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(7))
    assert (selected.sum(-1) == top_k).all()
    assert (gates[selected == 0] == 0).all()


def test_a_single_choice_keeps_its_probability_so_that_the_router_learns_from_the_task():
    logits = torch.randn(6, 4, requires_grad=True)
    gates, probabilities, selected = route(logits, 1)
    torch.testing.assert_close(gates.max(-1).values, probabilities.max(-1).values)
    gates.sum().backward()
    assert logits.grad.abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gates_are_fp32_whatever_the_logits_are(dtype):
    gates, probabilities, selected = route(torch.randn(3, 4, dtype=dtype), 2)
    assert {gates.dtype, probabilities.dtype, selected.dtype} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("top_k", [1, 2, 3, 5])
def test_gates_alone_are_those_of_the_whole_routing(top_k, dtype):
    # No two logits of a token are equal, so that there is one choice.
    logits = torch.stack([torch.randperm(5) / 3 for _ in range(14)]).reshape(2, 7, 5)
    logits = logits.to(dtype).requires_grad_()
    upstream = torch.randn(2, 7, 5)
    got, (want, *_) = gate(logits, top_k), route(logits, top_k)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad(g, logits, upstream)[0] for g in (got, want)]
    torch.testing.assert_close(*grads)


def test_huge_logits_give_finite_gates():
    logits = torch.tensor([[1e4, -1e4, 0.0, 5e3]])
    for gates in (route(logits, 2)[0], gate(logits, 2)):
        assert torch.isfinite(gates).all()
        torch.testing.assert_close(gates.sum(-1), torch.ones(1))


def balance_loss(probabilities, selected, valid=None):
    sums = router_sums(probabilities * selected, probabilities, selected, valid)
    return load_balancing_loss(sums, sums[: probabilities.shape[-1]])


def test_perfect_balance_costs_one_for_any_k():
    probabilities = torch.full((8, 4), 0.25)
    for top_k in (1, 2, 4):
        selected = torch.zeros(8, 4)
        for token in range(8):
            for slot in range(top_k):
                selected[token, (token + slot) % 4] = 1
        loss = balance_loss(probabilities, selected)
        torch.testing.assert_close(loss, torch.tensor(1.0))


def test_collapse_on_one_expert_costs_n():
    probabilities = torch.zeros(8, 4)
    probabilities[:, 2] = 1
    loss = balance_loss(probabilities, probabilities.clone())
    torch.testing.assert_close(loss, torch.tensor(4.0))


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_loss_equals_a_plain_loop_and_leaves_padding_out(top_k):
    x, router = torch.randn(2, 5, 8), torch.randn(3, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    _, probabilities, selected = route(x @ router.T, top_k)
    loss = balance_loss(probabilities.reshape(-1, 3), selected.reshape(-1, 3), mask.reshape(-1))
    expected = reference.load_balancing(x, router, top_k=top_k, mask=mask)
    torch.testing.assert_close(loss, expected)


def test_a_batch_of_padding_alone_is_finite():
    probabilities = torch.full((4, 2), 0.5)
    loss = balance_loss(probabilities, probabilities, torch.zeros(4))
    assert torch.isfinite(loss)


def test_no_token_gives_no_output():
    out = mix_experts(torch.zeros(0, 8), torch.zeros(6, 8), torch.zeros(4, 6), torch.zeros(0, 3))
    assert out.shape == (0, 4)
