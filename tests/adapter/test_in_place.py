"""Adding to the base layer's output in place harms nobody who may hold that output."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers.pytorch_utils import Conv1D

from axolotl_alphalora.adapter.fused import using
from helpers.balancing import adapted, gradients
from helpers.fusing import IN, OUT, assert_equal, make, run

BASES = {
    "plain": lambda: nn.Linear(IN, OUT, bias=False),
    "bias": lambda: nn.Linear(IN, OUT),
    "conv1d": lambda: Conv1D(OUT, IN),
    "subclass": lambda: type("Mine", (nn.Linear,), {})(IN, OUT, bias=False),
    "bf16": lambda: nn.Linear(IN, OUT).bfloat16(),
}


@pytest.mark.parametrize("kind", BASES)
def test_what_comes_after_may_change_the_output_in_place(kind):
    """As OLMo does with its queries, and a model with ReLU(inplace=True)."""
    layer, x = make(base=BASES[kind]())
    x = x.to(next(layer.base_layer.parameters()).dtype)
    results = []
    for function in (True, False):
        layer.zero_grad()
        with using(function=function):
            layer(x).clamp_(-0.5, 0.5).sum().backward()
        results.append([p.grad.clone() for p in layer.parameters() if p.requires_grad])
    assert_equal(*results, tolerance=2e-2 if kind == "bf16" else 1e-5)


@pytest.mark.parametrize("everywhere", [False, True], ids=["on the layer", "on all modules"])
def test_a_hook_on_the_base_layer_sees_the_base_s_output(everywhere):
    layer, x = make()
    seen = []

    def hook(module, args, out):
        if module is layer.base_layer:
            seen.append(out)

    register = nn.modules.module.register_module_forward_hook
    handle = register(hook) if everywhere else layer.base_layer.register_forward_hook(hook)
    try:
        got = run(layer, x, True)
    finally:
        handle.remove()
    torch.testing.assert_close(seen[0], x @ layer.base_layer.weight.T)
    assert not torch.equal(seen[0], got[0])


def test_a_fresh_output_of_the_base_is_added_to_in_place():
    layer, x = make()
    seen = []
    layer.base_layer.forward = lambda x: seen.append(x @ layer.base_layer.weight.T) or seen[-1]
    assert layer(x) is not seen[-1]
    del layer.base_layer.forward
    shapes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            shapes.append(str(func))
            return func(*args, **(kwargs or {}))

    owns = layer._owns
    layer._owns = lambda result: not result._is_view()
    with Watch():
        layer(x)
    assert "aten.clone.default" not in shapes
    layer._owns = owns
    with Watch():  # may have kept the output, so it is copied
        layer(x)
    assert "aten.clone.default" in shapes


@pytest.mark.parametrize("kept", ["mm", "addmm"])
def test_selective_checkpointing_may_keep_the_base_s_output(tiny_llama, batch, kept):
    context = partial(create_selective_checkpoint_contexts, [getattr(torch.ops.aten, kept).default])
    found = []
    for options in (None, {"use_reentrant": False, "context_fn": context}):
        model = adapted(tiny_llama).train()
        if options is not None:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        model(**batch).loss.backward()
        found.append(gradients(model))
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-4, atol=1e-6)
