"""Bytes of optimiser state, against the optimisers that the host would build.

Every optimiser takes one step on the CPU; the bytes of its state's tensors are counted, without
those of no dimension and without the two look-up tables that bitsandbytes shares between tensors.
"""

from types import SimpleNamespace

import pytest
import torch
from axolotl.utils.schemas.enums import CustomSupportedOptimizers
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from axolotl_alphalora.allocation.optimizers import RULES, state_bytes

CUSTOM = {optimizer.value for optimizer in CustomSupportedOptimizers}
OF_TRANSFORMERS = sorted(set(RULES) - CUSTOM)
OF_AXOLOTL = sorted(set(RULES) & CUSTOM)

SHAPES = [(8, 64), (64, 64), (16, 1000), (4096, 24), (3, 5000)]
"""Below and above 4096 elements, in and out of whole blocks, either side longer."""

SHARED = ("qmap1", "qmap2")


@pytest.fixture(autouse=True)
def eager():
    """Compiled steps keep the same state, and take minutes to compile."""
    with torch.compiler.set_stance("force_eager"):
        yield


def matrices():
    model = nn.Module()
    for position, shape in enumerate(SHAPES):
        model.register_parameter(f"matrix_{position}", nn.Parameter(torch.randn(shape)))
    return model


def held(tensor):
    """Bytes of a tensor, through the subclasses that torchao keeps quantised state in."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(held(getattr(tensor, part)) for part in tensor.__tensor_flatten__()[0])
    return tensor.nbytes


def bytes_after_a_step(model, optimizer):
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    if hasattr(optimizer, "train"):
        optimizer.train()
    optimizer.step()
    return {
        tuple(parameter.shape): sum(
            held(value)
            for name, value in optimizer.state[parameter].items()
            if isinstance(value, torch.Tensor) and value.ndim and name not in SHARED
        )
        for parameter in model.parameters()
    }


def expected(name):
    return {shape: state_bytes(name, shape) for shape in SHAPES}


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_state_of_what_transformers_builds(name, tmp_path):
    model = matrices()
    arguments = TrainingArguments(output_dir=str(tmp_path), optim=name, use_cpu=True)
    build, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    optimizer = build(model.parameters(), **options)
    assert bytes_after_a_step(model, optimizer) == expected(name)


def _build(name, model):
    """As the host's builder does, see ``_configure_optimizer`` in axolotl/core/builders/base.py."""
    common = {"lr": 1e-3, "weight_decay": 0.0}
    factory = {"opt_model": model, "training_args": SimpleNamespace()}
    if name == "muon":
        from axolotl.contribs.mit.muon import MuonOptimizerFactory

        return MuonOptimizerFactory()(**factory, **common)
    if name == "muon_8bit":
        from axolotl.utils.optimizers.muon_8bit import Muon8bitOptimizerFactory

        return Muon8bitOptimizerFactory()(**factory, **common, device_mesh=None)
    if name == "dion":
        from axolotl.contribs.mit.dion import DionOptimizerFactory

        return DionOptimizerFactory()(**factory, **common, dion_lr=0.01, dion_mu=0.95)
    if name == "sinkgd":
        from axolotl.utils.optimizers.sinkgd import SinkGDOptimizerFactory

        return SinkGDOptimizerFactory()(**factory, **common)
    if name == "ao_adamw_fp8":
        from torchao.optim.adam import AdamWFp8 as build
    elif name == "adopt_adamw":
        from axolotl.utils.optimizers.adopt import ADOPT as build
    elif name == "adamc":
        from axolotl.utils.optimizers.adamc import AdamC as build
    return build(model.parameters(), **common)


@pytest.mark.parametrize("name", OF_AXOLOTL)
def test_state_of_what_axolotl_builds(name):
    model = matrices()
    assert bytes_after_a_step(model, _build(name, model)) == expected(name)


def test_every_known_name_is_one_that_the_host_accepts():
    accepted = CUSTOM | {optimizer.value for optimizer in OptimizerNames}
    assert set(RULES) <= accepted
    assert {"adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"} < set(RULES)


@pytest.mark.parametrize("name", ["galore_adamw", "optimi_adamw", "AdamW", ""])
def test_an_unknown_optimizer_is_named_with_what_to_do(name):
    with pytest.raises(
        ValueError, match=f"{name!r} is not known, .* total_parameters instead.* adafactor, .*sgd"
    ):
        state_bytes(name, (8, 8))
