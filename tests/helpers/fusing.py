"""A routed layer in a training pass, run with the fused function or its plain twin."""

import torch
from torch import nn

from axolotl_alphalora.adapter import AlphaLoraConfig, AlphaLoraLayer
from axolotl_alphalora.adapter.balance import LoadBalancer
from axolotl_alphalora.adapter.batch import Padding
from axolotl_alphalora.adapter.fused import using

IN, OUT = 13, 11


def make(
    number=5,
    top_k=2,
    rank=3,
    dropout=0.0,
    coefficient=0.7,
    base=None,
    padding=True,
    rows=9,
    **mixture,
):
    """A layer in a training pass, and its input [2, rows, IN]."""
    torch.manual_seed(0)
    config = AlphaLoraConfig(
        num_experts=number,
        top_k=top_k,
        r=rank,
        init_weights=False,
        lora_dropout=dropout,
        aux_loss_coef=coefficient,
        **mixture,
    )
    base = (nn.Linear(IN, OUT, bias=False) if base is None else base).requires_grad_(False)
    layer = AlphaLoraLayer(base, "default", config, number, rank, "m", LoadBalancer()).train()
    training = layer.balancer.passes.now
    training.phase, training.weight = "train", torch.tensor(0.6)
    training.padding = Padding(torch.rand(2, rows) > 0.3 if padding else None)
    layer.balancer.passes.running = layer
    return layer, torch.randn(2, rows, IN)


def run(layer, x, function, upstream=None):
    """Output, and the gradients of the input and all trained parameters."""
    x = x.detach().clone().requires_grad_()
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    with using(function=function):
        out = layer(x)
    if upstream is None:
        upstream = torch.linspace(-1, 1, out.numel()).view(out.shape)
    grads = torch.autograd.grad(out, wanted, upstream.to(out), allow_unused=True)
    return [out.detach(), *grads]


def assert_equal(got, want, tolerance=1e-5):
    for one, other in zip(got, want, strict=True):
        if other is None:
            assert one is None
            continue
        assert one.dtype == other.dtype and one.shape == other.shape
        scale = max([1.0, *other.abs().flatten().tolist()])
        torch.testing.assert_close(one / scale, other / scale, rtol=0, atol=tolerance)
