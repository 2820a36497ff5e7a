"""What we rely on of torch."""

import inspect

import pytest
import torch
from torch import nn

from axolotl_alphalora.hosts import torch as torch_names
from helpers.contracts.registry import checks


@checks("torch", "next_node_number", "running_node_number")
def numbers_of_nodes():
    assert torch_names.running_node_number() is None
    seen = []

    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(torch_names.running_node_number())
            return grad

    before = torch_names.next_node_number()
    y = Seen.apply(torch.ones((), requires_grad=True))
    assert torch_names.next_node_number() == before + 1
    y.backward()
    assert seen == [before]


@checks("torch")
def is_watched():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    assert not torch_names.is_watched()
    with Watch():
        assert torch_names.is_watched()


@checks("torch")
def has_hooks():
    layer = nn.Linear(1, 1)
    assert not torch_names.has_hooks(layer)
    for register in (
        layer.register_forward_hook,
        layer.register_full_backward_hook,
        lambda hook: nn.modules.module.register_module_forward_hook(hook),
    ):
        handle = register(lambda *args: None)
        assert torch_names.has_hooks(layer)
        handle.remove()
        assert not torch_names.has_hooks(layer)
    layer.forward = layer.forward
    assert torch_names.has_hooks(layer)


@checks("torch")
def softmax_backward():
    logits, grad = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    found = torch_names.softmax_backward(grad, logits.softmax(-1).detach())
    logits.softmax(-1).backward(grad)
    torch.testing.assert_close(found, logits.grad)


@checks("torch")
def add_each():
    left = [torch.ones(2), torch.zeros(1)]
    torch_names.add_each(left, [torch.ones(2), torch.ones(1)])
    assert [part.tolist() for part in left] == [[2, 2], [1]]


@checks("torch")
def is_convolution():
    assert torch_names.is_convolution(nn.Conv1d(1, 1, 1))
    assert not torch_names.is_convolution(nn.Linear(1, 1))


@checks("torch", "whole_shape", "is_partitioned")
def partitioned():
    weight = nn.Parameter(torch.zeros(0))
    assert torch_names.whole_shape(weight) == (0,) and not torch_names.is_partitioned(weight)
    weight.ds_shape = torch.Size([2, 3])
    assert torch_names.whole_shape(weight) == (2, 3) and torch_names.is_partitioned(weight)
    zero = pytest.importorskip("deepspeed.runtime.zero.partition_parameters")
    assert "param.ds_shape = param.shape" in inspect.getsource(zero)
