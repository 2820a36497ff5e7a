"""The whole export: calibrate, build, measure, write."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..adapter import AlphaLoraLayer
from ..evaluation import Divergence, calibrate, measure_divergence
from ..files import ADAPTER_CARD
from ..hosts.peft import get_peft_model_state_dict
from ..hosts.transformers import Conv1D
from ..progress import Stages
from ..samples import Sample
from .factors import DEFAULT_METHOD, Method, build
from .lora import attach, save_lora, servers

RECORD = "alphalora_export.json"
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.model",
)


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

    def to_dict(self) -> dict[str, Any]:
        """The content of `alphalora_export.json`."""
        return {
            "method": self.method,
            "modules": len(self.ranks),
            "approximated": self.approximated,
            "unseen": list(self.unseen),
            "tied": list(self.tied),
            "ranks": dict(self.ranks),
            "servers": self.servers(),
            "calibration": dict(self.calibration),
            **self.notes,
            "price": self.divergence.to_dict(),
        }

    def servers(self) -> list[str]:
        """Which programs take it, and which must not get it, in words."""
        return servers(self.ranks.values(), self.modules_to_save)


def check_output(output: Path) -> None:
    """Check that an export can be written, before any work is done for it.

    Raises:
        ValueError: If there is something already.
        OSError: If nothing can be written there.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is not empty: name a new directory with --output.")
    draft = _draft(output)
    draft.mkdir(parents=True)
    draft.rmdir()


def export_adapter(
    model: Any,
    adapter: Path,
    output: Path,
    *,
    calibration: Sequence[Sample],
    held_out: Sequence[Sample],
    method: Method = DEFAULT_METHOD,
    rank: int | None = None,
    same_rank: bool = False,
    max_kl: float | None = None,
    notes: Mapping[str, Any] | None = None,
    stage: Stages | None = None,
    card: Callable[[Exported], str] | None = None,
) -> Exported:
    """Write a plain LoRA that stands in for a routed adapter; whole or not at all.

    Args:
        model: The `PeftModel` with the adapter as `default`; it is left in evaluation mode, with
            the adapter frozen.
        adapter: The adapter's directory; its tokenizer goes with the export.
        output: A new or empty directory.
        calibration: Rows that the routers are calibrated on, single sequences.
        held_out: Rows with labels that the divergence is measured on.
        method: How mixtures are replaced.
        rank: Compress modules of a higher rank to this one.
        same_rank: Pad all modules with zeros to the highest rank.
        max_kl: Write nothing if the KL divergence per token is above this.
        notes: Further facts for the record, as JSON values.
        stage: Shows progress.
        card: Describes the export for its `README.md`; without it there is none.

    Raises:
        ValueError: If the output is not empty, or the divergence is above `max_kl` or not finite.
    """
    check_output(output)
    step = _step(stage, "Calibrating", calibration)
    moments = calibrate(model, calibration, progress=step)
    updates = build(
        model,
        moments,
        method=method,
        rank=rank,
        same_rank=same_rank,
        progress=stage and stage("Fitting"),
    )
    attach(model, updates)
    try:
        step = _step(stage, "Measuring", held_out)
        divergence = measure_divergence(model, held_out, progress=step)
    finally:
        model.delete_adapter("export")
    _check_divergence(divergence, max_kl)
    layers = [module for module in model.modules() if isinstance(module, AlphaLoraLayer)]
    experts_rank = {layer.module_name: layer.r["default"] for layer in layers}
    ranks = {name: update.rank for name, update in updates.items()}
    tokens = sum(sample.inputs["input_ids"].numel() for sample in calibration)
    found = Exported(
        method,
        ranks,
        sum(module in moments or rank < experts_rank[module] for module, rank in ranks.items()),
        [module for module, seen in moments.items() if seen.tokens == 0],
        _tied(model),
        {"rows": len(calibration), "tokens": tokens},
        divergence,
        {"adapter": str(adapter), "rank": rank, "same_rank": same_rank, **(notes or {})},
        sorted(model.peft_config["default"].modules_to_save or ()),
    )
    saved = get_peft_model_state_dict(model)
    draft = _draft(output)
    try:
        draft.mkdir()
        save_lora(
            draft,
            updates,
            model.peft_config["default"],
            {
                key: value
                for key, value in saved.items()
                if "alphalora_" not in key and ".base_layer." not in key
            },
            dtype=layers[0].alphalora_A["default"].dtype,
            fan_in_fan_out=any(isinstance(layer.get_base_layer(), Conv1D) for layer in layers),
        )
        for pattern in _TOKENIZER:
            for file in adapter.glob(pattern):
                shutil.copy2(file, draft)
        (draft / RECORD).write_text(
            json.dumps(found.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
        if card is not None:
            (draft / ADAPTER_CARD).write_text(card(found), encoding="utf-8")
        if output.is_dir():
            output.rmdir()
        draft.rename(output)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return found


def _check_divergence(found: Divergence, max_kl: float | None) -> None:
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


def _tied(model: Any) -> list[str]:
    """Adapted modules whose weight another module of the base model uses too."""
    uses = Counter(
        id(parameter)
        for module in model.get_base_model().modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    return [
        module.module_name
        for module in model.modules()
        if isinstance(module, AlphaLoraLayer) and uses[id(module.get_base_layer().weight)] > 1
    ]


def _draft(output: Path) -> Path:
    return output.parent / f".{output.name}.{uuid4().hex[:8]}"


def _step(stage: Stages | None, what: str, samples: Sequence[Sample]) -> Any:
    return None if stage is None else stage(what)([sample.task for sample in samples])
