"""accelerate: hooks of offloaded modules."""

import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook
from torch import nn

from axolotl_alphalora.hosts import accelerate as host
from helpers.contracts.registry import checks, takes


def offloaded() -> nn.Linear:
    return cpu_offload(nn.Linear(3, 2), execution_device=torch.device("cpu"))


@checks("accelerate")
def remove_hook_from_module():
    takes(host.remove_hook_from_module, "module")
    layer = offloaded()
    host.remove_hook_from_module(layer)
    assert not hasattr(layer, "_hf_hook")


@checks("accelerate")
def set_module_tensor_to_device():
    takes(host.set_module_tensor_to_device, "module", "tensor_name", "device", "value")


@checks("accelerate")
def computes_on():
    assert host.computes_on(offloaded()) == torch.device("cpu")
    assert host.computes_on(nn.Linear(3, 2)) is None


@checks("accelerate")
def keep_loaded():
    layer = offloaded()
    _, hook = layer._hf_hook.hooks
    assert isinstance(hook, AlignDevicesHook) and hook.offload
    assert set(hook.original_devices) == {"weight", "bias"}
    assert layer.weight.is_meta
    host.keep_loaded(layer)
    assert not layer.weight.is_meta and layer.weight.any()
