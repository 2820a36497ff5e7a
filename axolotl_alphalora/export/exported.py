"""What an export is and what it costs, as it is written beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation import Divergence
from .servers import options, servers


@dataclass(frozen=True)
class Exported:
    """What was written, and what it costs.

    Attributes:
        method: How mixtures were replaced.
        ranks: Module name to rank.
        approximated: Number of modules that were approximated; the others are exact.
        unseen: Modules with a router that no token of the calibration reached.
        tied: Adapted modules whose weight the base model also uses elsewhere.
        calibration: Rows and tokens that the routers were calibrated on.
        divergence: How far it is from the routed adapter, as measured.
        notes: Further facts, as JSON values.
        modules_to_save: Modules that it holds whole.
        gguf: The file for llama.cpp, None if none was written.
        prefix: What its modules were named anew with.
        part: Whether the base is the text part of a multimodal model.
        added: Rows that training added to the vocabulary and left untrained.
    """

    method: str
    ranks: Mapping[str, int]
    approximated: int
    unseen: Sequence[str]
    tied: Sequence[str]
    calibration: Mapping[str, int]
    divergence: Divergence
    notes: Mapping[str, Any]
    modules_to_save: Sequence[str] = ()
    gguf: str | None = None
    prefix: str | None = None
    part: bool = False
    added: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The content of `alphalora_export.json`."""
        passed = {} if self.modules_to_save else options(self.ranks.values(), self.gguf)
        return {
            "method": self.method,
            "modules": len(self.ranks),
            "approximated": self.approximated,
            "unseen": list(self.unseen),
            "tied": list(self.tied),
            "ranks": dict(self.ranks),
            "servers": self.servers(),
            "options": passed,
            "calibration": dict(self.calibration),
            **self.notes,
            "price": self.divergence.to_dict(),
        }

    def servers(self) -> list[str]:
        """Which programs take it, and which must not get it, in words."""
        return servers(
            self.ranks.values(),
            self.modules_to_save,
            self.gguf,
            prefix=self.prefix,
            part=self.part,
            added=self.added,
        )


def check_divergence(found: Divergence, max_kl: float | None) -> None:
    """Check that an export is worth writing.

    Raises:
        ValueError: If its divergence is above `max_kl` or not finite.
    """
    numbers = (found.kl, found.loss_routed, found.loss_export, found.loss_base)
    losses = (
        f"loss per token: base {found.loss_base:.4f}, routed {found.loss_routed:.4f}, export "
        f"{found.loss_export:.4f}"
    )
    if not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"The export was measured as NaN or infinity (KL {found.kl}, {losses}), so nothing was "
            "written. Look for weights that are not finite: `alphalora inspect`."
        )
    if max_kl is not None and found.kl > max_kl:
        raise ValueError(
            f"The export is {found.kl:.4g} nats a token away from the routed adapter ({losses}), "
            f"more than --max-kl {max_kl:g} allows, so nothing was written. Try --method "
            "least-squares, more --samples, or a higher --rank."
        )
