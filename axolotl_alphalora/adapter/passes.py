"""The forward passes of a base model, and which of them a layer runs in, or is recomputed for."""

from __future__ import annotations

import warnings
from collections import deque
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import nn

from ..hosts.torch import next_node_number, running_node_number
from .batch import Padding

__all__ = ["OUTSIDE", "PASSES", "Decision", "Pass", "Passes", "Phase"]

Phase = Literal["train", "eval"]
PASSES = 64
"""Training passes before one backward that a recomputation can be told from each other."""


class Decision(NamedTuple):
    """What one router decided in a pass; see `LoadBalancer.record`."""

    sums: torch.Tensor
    slots: torch.Tensor
    block_share: float


@dataclass(eq=False)
class Pass:
    """What the routers need to know of a forward pass, and what they did in it.

    Attributes:
        phase: None where nothing is to be counted.
        padding: Which positions are real.
        weight: Share of this micro-batch in the step: 0-d tensor, or 1.
        labelled: Whether the model was given labels, and so computes a loss.
        decisions: What each router decided, until it is counted.
        counted: Whether it was.
        ran: The adapters' layers that ran, named as their routers would be.
        first: Sequence number of the first autograd node made in it.
        end: That of the first node made after it.
    """

    phase: Phase | None = None
    padding: Padding = Padding()
    weight: torch.Tensor | float = 1.0
    labelled: bool = False
    decisions: dict[str, Decision] = field(default_factory=dict)
    counted: bool = False
    ran: dict[str, None] = field(default_factory=dict)
    first: int = 0
    end: int = 0


OUTSIDE = Pass()
"""What layers get that are called by themselves, not by their base model's forward."""


class Passes:
    """The passes of one base model.

    Attributes:
        now: The pass that runs, or else the last training pass.
        training: The last training pass.
        running: The module whose forward runs: the base model, or its backbone.
    """

    def __init__(self) -> None:
        self.now = self.training = Pass()
        self.running: nn.Module | None = None
        self._recent: deque[Pass] = deque(maxlen=PASSES)
        self._warned = False

    def begin(self, model: nn.Module, training: bool) -> Pass:
        """Start a pass.

        Args:
            model: The module that is called.
            training: Whether it is in training, with gradients.
        """
        self.now, self.running = Pass(), model
        if training:
            self.now.phase, self.training = "train", self.now
            if not torch.compiler.is_compiling():
                self.now.first = next_node_number()
                # A call of the whole model that was checkpointed has been counted before.
                self.now.counted = running_node_number() is not None
        return self.now

    def end(self) -> Pass:
        """End the pass that runs, and return it."""
        ended, self.running = self.now, None
        # A compiled layer that is recomputed in the backward pass reads this one.
        self.now = self.training
        if ended.phase == "train" and not (ended.counted or torch.compiler.is_compiling()):
            ended.end = next_node_number()
            self._recent.append(ended)
        return ended

    def current(self) -> Pass:
        """The pass that runs, or whose blocks are recomputed.

        The autograd node that asks for a recomputation was numbered in its own pass.
        """
        if self.running is not None or torch.compiler.is_compiling():
            return self.now
        number = running_node_number()
        if number is None:
            return OUTSIDE
        for one in reversed(self._recent):
            if one.first <= number < one.end:
                return one
        if not self._warned:
            self._warned = True
            warnings.warn(
                "AlphaLoRA: a layer is recomputed in the backward pass, and it is not known for "
                f"which forward pass: it belongs to none of the last {PASSES} training passes of "
                "the base model. Its load-balancing loss goes by the last one's padding.",
                stacklevel=2,
            )
        return self.training
