"""The names of torch, and of DeepSpeed on a tensor, that are private, and what they are for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def next_node_number() -> int:
    """The number that the next autograd node of this thread gets; they count up."""
    return torch.autograd._get_sequence_nr()


def running_node_number() -> int | None:
    """The number of the autograd node whose backward runs, None outside of a backward pass."""
    node = torch._C._current_autograd_node()
    return None if node is None else node._sequence_nr()


def is_watched() -> bool:
    """Whether something looks on below autograd, such as selective checkpointing."""
    return torch._C._len_torch_dispatch_stack() > 0


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks, of its own or of all modules, or a replaced forward may see its output."""
    own = module._forward_hooks or module._backward_hooks or "forward" in module.__dict__
    return bool(own or torch.nn.modules.module._global_forward_hooks)


def softmax_backward(grad: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """The gradient of a softmax's input over its last dimension, in one operation: [..., N]."""
    return torch._softmax_backward_data(grad, probabilities, -1, probabilities.dtype)


def add_each(left: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    """Add tensors to tensors in place, in one operation."""
    torch._foreach_add_(left, right)


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution, whose weight has three or more dimensions."""
    return isinstance(module, nn.modules.conv._ConvNd)


def whole_shape(parameter: Any) -> torch.Size:
    """The shape of a parameter, also of one that DeepSpeed ZeRO-3 has partitioned."""
    return getattr(parameter, "ds_shape", parameter.shape)


def is_partitioned(parameter: Any) -> bool:
    """Whether DeepSpeed ZeRO-3 keeps a parameter in parts."""
    return hasattr(parameter, "ds_shape")
