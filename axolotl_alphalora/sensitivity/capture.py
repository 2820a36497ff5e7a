"""What goes into linear layers and what comes back: forward hooks with an identity that squares."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_ELEMENTS = 2**23


def squared_gradient_norm(x: Tensor, gradient: Tensor) -> Tensor:
    """`||dL/dW||_F^2` of `y = x W^T`, without a buffer that grows with T or with W.

    dL/dW is `g^T x` for an input `x` and the gradient `g` of the output, over T tokens. Its
    squared norm is also `sum((x x^T) * (g g^T))`: where T is small against the layer's sides,
    these two T x T matrices cost fewer operations. Either is computed in pieces whose every matrix
    has at most 32 MiB, or is one row. Products and sums are in float32 (on CUDA with TF32 where
    the process allows it, which is exact for half-precision activations).

    Args:
        x: `[..., in]`, floating point.
        gradient: `[..., out]`, floating point, with the leading sizes of `x`.

    Returns:
        A float32 scalar on the same device.
    """
    x = x.detach().reshape(-1, x.shape[-1])
    gradient = gradient.detach().reshape(-1, gradient.shape[-1])
    tokens, (wide, tall) = x.shape[0], (x.shape[1], gradient.shape[1])
    rows = min(_rows(max(wide, tall)), math.isqrt(_ELEMENTS))
    with torch.autocast(x.device.type, enabled=False):
        if (tokens + min(tokens, rows)) * (wide + tall) < 2 * wide * tall:
            return _from_grams(x, gradient, rows)
        return _from_product(x, gradient)


def _rows(columns: int) -> int:
    return max(1, _ELEMENTS // columns)


def _from_grams(x: Tensor, gradient: Tensor, rows: int) -> Tensor:
    """Sum over tiles on and under the diagonal; both Gram matrices are symmetric."""
    total = torch.zeros((), device=x.device)
    for start in range(0, len(x), rows):
        left, above = x[start : start + rows].float(), gradient[start : start + rows].float()
        for other in range(0, start + 1, rows):
            inputs = left @ x[other : other + rows].float().T
            outputs = above @ gradient[other : other + rows].float().T
            total += inputs.mul_(outputs).sum() * (1 if other == start else 2)
    # A sum of signed products may round below zero; the norm does not.
    return total.clamp_(min=0)


def _from_product(x: Tensor, gradient: Tensor) -> Tensor:
    """Sum over rows of dL/dW, each gathered over pieces of the tokens."""
    total = torch.zeros((), device=x.device)
    tall = min(_rows(x.shape[1]), gradient.shape[1])
    tokens = _rows(max(x.shape[1], tall))
    for start in range(0, gradient.shape[1], tall):
        columns = gradient[:, start : start + tall]
        product = torch.zeros(columns.shape[1], x.shape[1], device=x.device)
        for first in range(0, len(x), tokens):
            piece = slice(first, first + tokens)
            product.addmm_(columns[piece].float().T, x[piece].float())
        total += product.square_().sum()
    return total


class _Touch(torch.autograd.Function):
    """The identity, with an output that requires a gradient because the anchor does."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor) -> Tensor:
        # Not a view: models may write into what their layers return.
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None


class _Probe(torch.autograd.Function):
    """The identity on a layer's output, whose backward squares the layer's weight gradient.

    The input is a saved tensor, so that gradient checkpointing drops and recomputes it as it does
    any other.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, x: Tensor, anchor: Tensor, capture: Capture, name: str
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.capture, ctx.name = capture, name
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        ctx.capture.add(ctx.name, squared_gradient_norm(x, gradients[0]))
        return gradients[0], None, None, None, None


class Capture:
    """Squared norms of the weight gradients of some layers, for one backward pass at a time.

    Hooks are installed by `watch` and `reach`; taking them away is the caller's.

    Attributes:
        called: The names of the targets that were called at least once, in any pass.
    """

    def __init__(self) -> None:
        self.called: set[str] = set()
        self._replayable = False
        self._reset()

    def watch(self, targets: Mapping[str, nn.Module]) -> None:
        """Square the weight gradient of every target on each backward pass from now on.

        Raises:
            ValueError: Later, in the forward pass, from a layer that is not called like a linear
                one or whose output has no gradient; the error names it.
        """
        for name, module in targets.items():
            module.register_forward_hook(partial(self._probe, name=name))

    def reach(self, embedding: nn.Module, checkpointed: Iterable[nn.Module]) -> None:
        """Make backward passes reach the targets although no weight requires a gradient.

        Args:
            embedding: The model's input embedding; its output is made to require a gradient.
            checkpointed: Layers that are recomputed. Reentrant checkpointing leaves out a layer
                of whose inputs none requires a gradient, as in a vision tower; such a layer's
                first input is made to.
        """
        from ..hosts.transformers import wrap_checkpointing

        embedding.register_forward_hook(_touch_output)
        for layer in checkpointed:
            wrap_checkpointing(layer, self._checkpoint)

    def add(self, name: str, square: Tensor) -> None:
        """Keep the squared norm (a scalar) of one backward pass through the module."""
        self._found[name] = square
        self._backwards[name] += 1

    def take(self, names: Iterable[str]) -> list[float]:
        """The squared norms since the last call, 0 for a module that was not called.

        Raises:
            NotImplementedError: If a module was called more than once, or only where gradients
                are switched off.
        """
        names = list(names)
        found, backwards = self._found, self._backwards
        blind = self._unrecorded - self._recorded
        self._reset()
        for name in names:
            if backwards[name] > 1:
                raise NotImplementedError(
                    f"{name} is called {backwards[name]} times for one sample, so its weight's "
                    "gradient is a sum that cannot be squared call by call. Leave it out of the "
                    "target modules."
                )
            if name in blind:
                raise NotImplementedError(
                    f"{name} runs where the model switches gradients off, so its weight has no "
                    "gradient. Leave it out of the target modules."
                )
        if not found:
            return [0.0] * len(names)
        device = next(iter(found.values())).device
        values = torch.stack([square.to(device) for square in found.values()]).tolist()
        squares = dict(zip(found, values, strict=True))
        return [squares.get(name, 0.0) for name in names]

    def _reset(self) -> None:
        self._found: dict[str, Tensor] = {}
        self._backwards: Counter[str] = Counter()
        self._recorded: set[str] = set()
        self._unrecorded: set[str] = set()

    def _probe(self, module: nn.Module, args: tuple[Any, ...], output: Any, name: str) -> Any:
        self.called.add(name)
        if not torch.is_grad_enabled():
            if not self._replayable:
                self._unrecorded.add(name)
            return None
        self._recorded.add(name)
        x = args[0] if args else None
        if not (
            isinstance(x, Tensor)
            and isinstance(output, Tensor)
            and x.is_floating_point()
            and x.shape[:-1] == output.shape[:-1]
        ):
            raise ValueError(
                f"{name} ({type(module).__name__}) is not called like a linear layer, with one "
                "floating-point tensor [..., in] that gives one tensor [..., out]. Leave it out of "
                "the target modules."
            )
        if x.requires_grad and not output.requires_grad:
            raise ValueError(
                f"{name} ({type(module).__name__}) passes no gradient on to its input: its kernel "
                "is for inference only. Load the model as it is loaded for training."
            )
        return _Probe.apply(output, x, _anchor(x), self, name)

    def _checkpoint(
        self, checkpoint: Callable[..., Any], function: Callable[..., Any], *args: Any
    ) -> Any:
        """Run a checkpoint that backward passes reach, if it has an input to reach it by.

        Where it switches gradients off itself (reentrance), a layer that is used runs again with
        gradients, and the gradient of one that is not used is 0.
        """
        tensors = [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]
        if not tensors or not torch.is_grad_enabled():
            return checkpoint(function, *args)
        if not any(tensor.requires_grad for tensor in tensors):
            first = tensors[0]
            args = tuple(_Touch.apply(a, _anchor(a)) if a is first else a for a in args)
        return checkpoint(partial(self._run, function), *args)

    def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        outer, self._replayable = self._replayable, not torch.is_grad_enabled()
        try:
            return function(*args)
        finally:
            self._replayable = outer


def _anchor(beside: Tensor) -> Tensor:
    return torch.zeros((), device=beside.device, requires_grad=True)


def _touch_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return _Touch.apply(output, _anchor(output))
