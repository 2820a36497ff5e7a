"""What accelerate hangs on the modules of a base that does not fit its device."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.hooks import (
    remove_hook_from_module,
)
from accelerate.utils import (
    set_module_tensor_to_device,  # also one that is on the meta device
)
from torch import nn


def _offloading(module: nn.Module) -> list[Any]:
    whole = getattr(module, "_hf_hook", None)
    return [hook for hook in getattr(whole, "hooks", [whole]) if getattr(hook, "offload", False)]


def computes_on(module: nn.Module) -> torch.device | None:
    """The device that a module computes on, if accelerate offloads its tensors in between."""
    hook = next(iter(_offloading(module)), None)
    return None if hook is None else torch.device(hook.execution_device)


def keep_loaded(module: nn.Module) -> None:
    """Have a module keep its tensors where it computes, if accelerate offloads them.

    For modules that hold tensors and are never called: the hook would load them in a call.

    Raises:
        KeyError: If a tensor is not in what was offloaded.
    """
    for hook in _offloading(module):
        values = {name: hook.weights_map[name] for name in hook.original_devices}
        remove_hook_from_module(module)
        for name, value in values.items():
            set_module_tensor_to_device(module, name, hook.execution_device, value=value)
