"""torch.compile takes a routed layer whole, and its gradients are the plain ones."""

import pytest
import torch

from axolotl_alphalora.adapter import AlphaLoraLayer
from balancing import adapted, assert_same, gradients, reference_gradients


@pytest.mark.works("Memory and speed", "`torch_compile`: no graph break in our layers")
def test_no_layer_breaks_the_graph_and_the_gradients_are_the_reference_s(tiny_llama, batch):
    model = adapted(tiny_llama).train()
    layers = [module for module in model.modules() if isinstance(module, AlphaLoraLayer)]
    # One function is compiled for many layers, each with its own number of experts.
    with torch._dynamo.config.patch(recompile_limit=8 * len(layers)):
        for layer in layers:
            layer.compile(fullgraph=True, backend="aot_eager")
        model(**batch).loss.backward()
    assert_same(gradients(model), reference_gradients(tiny_llama, [batch], [1.0]))
    torch._dynamo.reset()
