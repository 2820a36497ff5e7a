"""Compares Triton's gating with its plain twin, in Triton's interpreter: no GPU is needed.

Run with TRITON_INTERPRET=1, which must be set before triton is imported.
"""

import itertools

import torch
from peft import get_peft_model
from torch import nn

from axolotl_alphalora.adapter import AlphaLoraConfig, find_balancer, fused, gating, triton_gating

TOKENS = (0, 1, 65)
EXPERTS = ((2, 1), (2, 2), (3, 2), (5, 1), (5, 2), (8, 8), (9, 4), (17, 2))
RANKS = (1, 3)


def cases():
    yield from itertools.product(TOKENS, EXPERTS, RANKS)


def distinct_logits(tokens, number, dtype):
    """No two logits of a token are equal, so that there is one choice."""
    rows = [torch.randperm(number) for _ in range(tokens)]
    return (torch.stack(rows) / 2 - 1 if rows else torch.zeros(0, number)).to(dtype)


def compare(tokens, number, top_k, rank, dtype, masked, balanced, copies=1):
    # The hidden states and the logits are parts of one product, as without dropout.
    width = number * rank // copies
    both = torch.randn(tokens, width + number, dtype=dtype)
    both[:, width:] = distinct_logits(tokens, number, dtype)
    hidden, logits = both.tensor_split([width], -1)
    d_mixed = torch.randn(tokens, number * rank, dtype=dtype)
    valid = torch.rand(tokens) > 0.4 if masked else None
    results = []
    for module in (gating, triton_gating):
        mixed, kept, sums = module.gate_forward(hidden, logits, top_k, valid, copies)
        balance = None
        if balanced:
            balance = gating.Balance(sums[:number], sums, torch.tensor(3.0))
        back = module.gate_backward(d_mixed, hidden, kept, top_k, valid, balance, copies)
        results.append((mixed, sums, *back))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(9, 12, bias=False), nn.Linear(12, 9, bias=False)

    def forward(self, x, labels=None, attention_mask=None):
        return self.second(self.first(x).tanh()).square().mean()


def compare_models():
    """The whole fused path with either gating, dropout and load-balancing loss included."""
    torch.manual_seed(1)
    counts = {"first": 5, "second": 3}
    config = AlphaLoraConfig(
        r=4, num_experts=counts, lora_dropout=0.2, aux_loss_coef=0.5, init_weights=False
    )
    model = get_peft_model(Tiny(), config).train()
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    x = torch.randn(2, 4, 9)
    found = []
    for module in (gating, triton_gating):
        fused._kernels = lambda x, module=module: module
        torch.manual_seed(2)
        model.zero_grad()
        model(x, labels=x, attention_mask=mask).backward()
        grads = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        found.append((*grads, torch.tensor(find_balancer(model).pop("train"))))
    for got, want in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def main():
    torch.manual_seed(0)
    number_of_cases = 0
    for tokens, (number, top_k), rank in cases():
        for masked, balanced in ((False, True), (True, True), (True, False)):
            compare(tokens, number, top_k, rank, torch.float32, masked, balanced)
            number_of_cases += 1
    compare(33, 5, 2, 8, torch.bfloat16, True, True)
    compare(33, 12, 4, 2, torch.float32, True, True, copies=3)
    compare_models()
    print(number_of_cases, "cases agree")


if __name__ == "__main__":
    main()
