"""The arithmetic of a layer that holds several projections, against loops over its experts."""

from itertools import product

import pytest
import torch
from torch import nn

from axolotl_alphalora.mixture import Mixture
from axolotl_alphalora.vllm.routed import Projection, RoutedExperts, RoutedMethod, gates_of
from helpers.vllm_layers import LinearBase, Plain, added

COUNTS = {
    "one projection": [3],
    "alike": [4, 4, 4],
    "unlike": [1, 5, 2],
    "some without experts": [0, 3, 0],
    "one expert each": [1, 1],
    "two groups": [2, 2, 3, 3],
}
MIXTURES = [
    Mixture(top_k, segments, router_rank, share_a)
    for top_k, segments, router_rank, share_a in product(
        (1, 2, 9, 0.5), (1, 2), (None, 3), (False, True)
    )
]


def layer_of(counts, ranks, mixture, seed=0):
    """A layer with random weights, its experts, and what they are made of."""
    generator = torch.Generator().manual_seed(seed)
    into, outs = 12, [6 + 2 * i for i in range(len(counts))]

    def random(shape):
        return torch.randn(shape, generator=generator)

    layer = LinearBase(random((sum(outs), into)), outs)
    parts, tensors = [], []
    for out, count, rank in zip(outs, counts, ranks, strict=True):
        parts.append(Projection(out, count, rank, mixture))
        shapes = mixture.tensors(into, out, count, rank)
        tensors.append({name: random(shape) for name, shape in shapes.items()})
    experts = RoutedExperts(parts)
    has = [i for i, count in enumerate(counts) if count]
    scalings = [mixture.segments * 8 / ranks[i] for i in has]
    for name, buffer in experts.buffers([tensors[i] for i in has], scalings).items():
        layer.register_buffer(name, buffer)
    layer.quant_method = RoutedMethod(layer.quant_method, experts)
    return layer, tensors


@pytest.mark.works("Serving", "the routed mixture of vLLM's layers, on stand-ins for them")
@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
@pytest.mark.parametrize("kind", COUNTS)
def test_every_mixture_is_that_of_the_plain_loop(kind, mixture):
    counts = COUNTS[kind]
    ranks = [4] * len(counts) if kind != "unlike" else [4, 2, 6]
    layer, tensors = layer_of(counts, ranks, mixture)
    x = torch.randn(7, 12, generator=torch.Generator().manual_seed(2))
    base = nn.functional.linear(x, layer.weight)
    want = [
        part + added(x, own, count, rank, mixture)
        for part, own, count, rank in zip(
            base.split(layer.output_sizes, -1), tensors, counts, ranks, strict=True
        )
    ]
    torch.testing.assert_close(layer(x)[0], torch.cat(want, -1), rtol=1e-5, atol=1e-4)


def test_leading_dimensions_and_an_empty_batch_are_taken():
    layer, _ = layer_of([3, 2], [4, 4], Mixture())
    x = torch.randn(2, 5, 12)
    flat = layer(x.reshape(-1, 12))[0]
    torch.testing.assert_close(layer(x)[0], flat.reshape(2, 5, -1))
    assert layer(x[:0])[0].shape == (0, 5, flat.shape[-1])


def test_the_output_keeps_the_base_layers_dtype():
    layer, _ = layer_of([3], [4], Mixture())
    wide = layer(torch.randn(4, 12, generator=torch.Generator().manual_seed(0)))[0]
    layer.to(torch.bfloat16)
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    out = layer(x.bfloat16())[0]
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), wide, rtol=0.1, atol=1.0)


def test_a_bias_is_the_base_layers():
    layer, _ = layer_of([3], [4], Mixture())
    x, bias = torch.randn(4, 12), torch.randn(6)
    method = layer.quant_method
    torch.testing.assert_close(method.apply(layer, x, bias), method.apply(layer, x) + bias)


def test_what_else_is_asked_of_the_method_the_layers_own_answers():
    class Quantised(Plain):
        group_size = 32

    method = RoutedMethod(Quantised(), RoutedExperts([]))
    assert method.group_size == 32
    assert not isinstance(method, Plain), "code that goes around a plain method must not find one"
    with pytest.raises(AttributeError):
        method.nothing  # noqa: B018


@pytest.mark.parametrize("experts", [2, 5, 8])
def test_gates_are_those_of_the_adapter(experts):
    from axolotl_alphalora.adapter.functional import route

    logits = torch.randn(6, 3, experts, generator=torch.Generator().manual_seed(0))
    for active in range(1, experts + 1):
        torch.testing.assert_close(gates_of(logits, active), route(logits, active)[0])


def test_it_compiles_whole(compiler):
    layer, _ = layer_of([4, 4, 2], [4, 4, 4], Mixture(2, 2, 3, True))
    compiled = compiler(layer, fullgraph=True, dynamic=True)
    for tokens in (1, 6, 9):
        x = torch.randn(tokens, 12)
        torch.testing.assert_close(compiled(x)[0], layer(x)[0], rtol=1e-5, atol=1e-5)
