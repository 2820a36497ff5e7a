"""Where cells are run, and in which precision: losses of two of these are never compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

DEVICES = ("cpu", "cpu-bf16", "cuda")
"""cpu computes in fp32; cpu-bf16 too, but for the products of frozen layers; cuda in bf16."""


def here() -> str:
    """The fastest of `DEVICES` on this machine."""
    if torch.cuda.is_available():
        return "cuda"
    return "cpu-bf16" if torch.cpu._is_amx_tile_supported() else "cpu"


def place(device: str) -> str:
    """What torch calls one of `DEVICES`."""
    return device.partition("-")[0]


def autocast(where: str) -> torch.autocast:
    """The precision that passes run in: fp32 on a CPU, bf16 on a GPU."""
    return torch.autocast(where, dtype=torch.bfloat16, enabled=where != "cpu")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return nn.functional.linear(x.to(weight.dtype), weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        return (grad.to(weight.dtype) @ weight).to(grad.dtype), None


class RoundedLinear(nn.Linear):
    """A frozen linear layer that multiplies in bf16, forwards and backwards, between fp32 tensors.

    Its weight stays fp32 too, for whoever reads it.
    """

    rounded: Tensor

    @classmethod
    def of(cls, linear: nn.Linear) -> RoundedLinear:
        """One with the weight and bias of another."""
        made = cls(linear.in_features, linear.out_features, device="meta")
        made.weight, made.bias = linear.weight, linear.bias
        made.register_buffer("rounded", linear.weight.detach().bfloat16(), persistent=False)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        product = _Product.apply(x, self.rounded)
        return product if self.bias is None else product + self.bias


def round_products(model: nn.Module) -> None:
    """Have the linear layers of a frozen model multiply in bf16, all but its head, in place."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and module is not model.get_output_embeddings():  # type: ignore[operator]
            model.set_submodule(name, RoundedLinear.of(module))
