"""torch.compile takes a model with routed layers whole, and its gradients are the plain ones."""

import pytest
import torch

from axolotl_alphalora.adapter import AlphaLoraLayer
from axolotl_alphalora.adapter.fused import keep_mask
from helpers.balancing import adapted, assert_same, gradients, reference_gradients
from helpers.mixtures import EVERYTHING


@pytest.fixture(autouse=True)
def fresh_dynamo(compiler):
    # One function is compiled for many layers, each with its own number of experts.
    with torch._dynamo.config.patch(recompile_limit=256, accumulated_recompile_limit=1024):
        yield


@pytest.mark.works("Memory and speed", "`torch_compile`: no graph break in our layers")
@pytest.mark.parametrize("whole", [False, True], ids=["layers", "model"])
def test_no_layer_breaks_the_graph_and_the_gradients_are_the_reference_s(tiny_llama, batch, whole):
    model = adapted(tiny_llama).train()
    for module in [model] if whole else list(model.modules()):
        if whole or isinstance(module, AlphaLoraLayer):
            module.compile(fullgraph=True, backend="aot_eager")
    model(**batch).loss.backward()
    assert_same(gradients(model), reference_gradients(tiny_llama, [batch], [1.0]))


def test_nor_does_any_option_of_a_mixture(tiny_llama, batch):
    model = adapted(tiny_llama, **EVERYTHING).train()
    model(**batch).loss.backward()
    want = gradients(model)
    model.zero_grad()
    for module in list(model.modules()):
        if isinstance(module, AlphaLoraLayer):
            module.compile(fullgraph=True, backend="aot_eager")
    model(**batch).loss.backward()
    assert_same(gradients(model), want)


def test_dropout_does_not_break_the_graph(tiny_llama):
    model = adapted(tiny_llama, lora_dropout=0.5).train()
    layer = next(m for m in model.modules() if isinstance(m, AlphaLoraLayer))
    layer.compile(fullgraph=True, backend="aot_eager")
    x = torch.randn(7, layer.in_features, requires_grad=True)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    first.sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0


def test_a_compiled_mask_keeps_the_share_it_should():
    torch.manual_seed(0)
    compiled = torch.compile(keep_mask, fullgraph=True, backend="aot_eager")
    kept = compiled(torch.empty(200, 500), 0.3)
    assert kept.dtype == torch.uint8 and set(kept.unique().tolist()) == {0, 1}
    assert abs(kept.float().mean() - 0.7) < 5e-3
