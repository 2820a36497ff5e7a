"""Which adapted layers a training pass left out, or called more than once: said in warnings."""

from __future__ import annotations

import warnings

from torch import nn

from .batch import Pass, Passes


class CallReport:
    """Warns of layers that are called otherwise than once in a pass.

    Args:
        passes: The passes of the model's balancer.
    """

    def __init__(self, passes: Passes) -> None:
        self._passes = passes
        self._idle_checked: set[str] = set()
        self._idle: set[str] = set()
        self._repeated_named = False

    def begin(self) -> None:
        """Have the next training pass looked at, as where an adapter has been added."""
        self._idle_checked.clear()

    def name_idle(self, model: nn.Module) -> None:
        """Warn, once, of trained layers that the first training pass did not run.

        Args:
            model: The base model, its backbone, or a model around it.
        """
        kind, last = type(model).__name__, self._passes.training
        if kind in self._idle_checked or last.phase is None:
            return
        layers = [
            name
            for module in model.modules()
            if getattr(getattr(module, "balancer", None), "calls", None) is self
            for name in module.trained_names()  # type: ignore[operator]
        ]
        if not layers:  # all are switched off for now
            return
        self._idle_checked.add(kind)
        idle = [n.rpartition(".")[0] for n in layers if n not in {*last.ran, *self._idle}]
        self._idle |= {name for name in layers if name not in last.ran}
        if idle:
            named = ", ".join(idle[:3]) + (f" and {len(idle) - 3} more" if len(idle) > 3 else "")
            warnings.warn(
                f"AlphaLoRA: {len(idle)} of {len(layers)} adapted layers did not run in the first "
                f"training pass: {named}. The model reads their weights without calling them, or "
                "the batch had nothing for them (no image, say). Experts that never run are never "
                "trained: leave such layers out of the targets.",
                stacklevel=2,
            )

    def name_repeated(self, one: Pass) -> None:
        """Warn, once, of layers that a training pass called more than once.

        Args:
            one: The pass, before what its routers decided is counted.
        """
        repeated = [name for name, calls in one.decisions.items() if len(calls) > 1]
        if not repeated or self._repeated_named:
            return
        self._repeated_named = True
        first, more = repeated[0], len(repeated) - 1
        warnings.warn(
            f"AlphaLoRA: {first.rpartition('.')[0]}{f' and {more} more layers' if more else ''} "
            f"ran {len(one.decisions[first])} times in one forward pass. Each call is balanced by "
            "itself, and their load-balancing losses add up: lower `aux_loss_coef` if that is too "
            "much. Where a call sees only a part of the batch (chunked feed-forward), padding "
            "counts in it.",
            stacklevel=2,
        )
