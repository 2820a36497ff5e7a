"""How much the model's loss counts in the total that is differentiated, read in its backward pass.

Scales are found by a plain key from inside opaque operators: a value read from a Python attribute
in a backward would be frozen by torch.compile.
"""

from __future__ import annotations

import itertools
import warnings
import weakref
from typing import Any

import torch

_keys = itertools.count()
_scales: weakref.WeakValueDictionary[int, LossScale] = weakref.WeakValueDictionary()


class LossScale:
    """d(total) / d(loss) of one base model.

    Attributes:
        default: Its value where no loss of the model's own has told; None where nobody has set
            it, and 1 is taken with a warning. A scale made with `of` has that one's.
        of_shares: The same for passes whose weight is their share of the step, so that nothing is
            left to divide by.
        recorded: What the loss's backward told, a 0-d fp32 tensor.
        key: Under which the operators find it; unique in the process.
    """

    def __init__(
        self, default: float | None = None, of: LossScale | None = None, shares: bool = False
    ) -> None:
        self.default = default
        self.of_shares = 1.0
        self._of = of
        self._shares = shares
        self.recorded: torch.Tensor | None = None
        self.key = next(_keys)
        self._warned = False
        _scales[self.key] = self

    def guess(self) -> float:
        """The default, or 1 where there is none, with one warning."""
        if self._of is not None:
            guess = self._of.guess()  # which warns
            return self._of.of_shares if self._shares else guess
        if self.default is not None:
            return self.default
        if not self._warned:
            self._warned = True
            warnings.warn(
                "AlphaLoRA: the loss is not computed by the model, so that the load-balancing "
                "loss cannot tell what it counts under gradient accumulation or loss scaling, and "
                "is taken once for every training pass, or by its share of the step where the "
                "model is told that (`labels` and `num_items_in_batch`). Give the trainer "
                "`callbacks=[AlphaLoraCallback()]` (from axolotl_alphalora import "
                "AlphaLoraCallback); in a training loop of your own, set "
                "`find_balancer(model).scale.default = 1 / accumulation_steps` (from "
                "axolotl_alphalora.adapter import find_balancer).",
                stacklevel=2,
            )
        return 1.0


def attach_loss(
    gates: torch.Tensor,
    loss: torch.Tensor,
    weight: torch.Tensor | float,
    coefficient: float,
    key: int,
) -> torch.Tensor:
    """Return the gates unchanged; their backward also differentiates the loss.

    Args:
        gates: [..., N] fp32.
        loss: 0-d fp32, a function of the same router's logits.
        weight: Share of this micro-batch in the step: 0-d tensor, or 1.
        coefficient: Factor on the loss.
        key: The `LossScale` to ask for d(total) / d(model's loss).
    """
    if not isinstance(weight, torch.Tensor):
        weight = loss.new_tensor(weight)
    return _AttachLoss.apply(gates, loss, weight.to(loss.device) * coefficient, key)


def probe_loss(loss: torch.Tensor, key: int) -> torch.Tensor:
    """Return a copy of the loss whose backward records d(total) / d(loss) for `key`."""
    return _ProbeLoss.apply(loss, key)


class _AttachLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gates, loss, weight, key):
        ctx.save_for_backward(weight)
        ctx.key = key
        return gates.view_as(gates)

    @staticmethod
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        return grad, weight * read_loss_scale(grad, ctx.key), None, None


class _ProbeLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, key):
        ctx.key = key
        # The HF Trainer multiplies the loss it gets in place.
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        return _record_loss_scale(grad, ctx.key), None


@torch.library.custom_op("alphalora::record_loss_scale", mutates_args=())
def _record_loss_scale(grad: torch.Tensor, key: int) -> torch.Tensor:
    _scales[key].recorded = grad.detach().float().clone().reshape(())
    return grad.clone()


@_record_loss_scale.register_fake
def _(grad: torch.Tensor, key: int) -> torch.Tensor:
    return torch.empty_like(grad)


def read_loss_scale(grad: torch.Tensor, key: int) -> torch.Tensor:
    """d(total) / d(model's loss) of the backward pass that runs: 0-d, fp32.

    Args:
        grad: A gradient of it, for its device.
        key: The `LossScale` that knows.
    """
    # The operator keeps torch.compile from freezing the value; a plain call costs less.
    return (_scale_operator if torch.compiler.is_compiling() else _scale)(grad, key)


def _scale(grad: torch.Tensor, key: int) -> torch.Tensor:
    scale = _scales[key]
    if scale.recorded is None:
        return grad.new_full((), scale.guess(), dtype=torch.float32)
    return scale.recorded.to(grad.device)


@torch.library.custom_op("alphalora::read_loss_scale", mutates_args=())
def _scale_operator(grad: torch.Tensor, key: int) -> torch.Tensor:
    return _scale(grad, key).clone()


@_scale_operator.register_fake
def _(grad: torch.Tensor, key: int) -> torch.Tensor:
    return grad.new_empty((), dtype=torch.float32)


def probe_output(output: Any, key: int) -> Any:
    """Put the probe on the loss of a model's output, if it is one number.

    The output is a dictionary, as transformers' are, or a tuple led by the loss. The elements of
    another loss may each count for something else.
    """
    if isinstance(output, dict):
        if _is_loss(output.get("loss")):
            output["loss"] = probe_loss(output["loss"], key)
    elif isinstance(output, tuple) and output and _is_loss(output[0]):
        return (probe_loss(output[0], key), *output[1:])
    return output


def _is_loss(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() == 1 and value.requires_grad
