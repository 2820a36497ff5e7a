"""What a batch says of itself: which positions are padding, and how much of the step it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

_IGNORE_INDEX = -100


def padding_mask(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> torch.Tensor | None:
    """Which positions of the batch are real: [B, S], or None where all are.

    The 2-D attention mask tells, by keyword or second after the ids as in every HF model. Packed
    batches, which have position ids, come without one, or with one that is 1 on the padding too:
    there the pad tokens that end a row are not real.
    """
    mask = kwargs.get("attention_mask")
    if mask is None and len(args) > 1:
        mask = args[1]
    if isinstance(mask, torch.Tensor):
        if mask.ndim != 2:
            return None
        # With a key-value cache it also covers what was read before.
        mask = mask[:, -_length(mask, args, kwargs) :]
        if kwargs.get("position_ids") is None:
            return mask.ne(0)
    ended = _before_trailing_padding(model, kwargs)
    if ended is None or mask is None:
        return ended if mask is None else mask.ne(0)
    return ended & mask.ne(0)


def _before_trailing_padding(model: nn.Module, kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Positions up to a row's last target or last token that is no padding: [B, S]."""
    ids, labels = kwargs.get("input_ids"), kwargs.get("labels")
    pad = getattr(getattr(model, "config", None), "pad_token_id", None)
    if ids is None or labels is None or pad is None or ids.shape != labels.shape:
        return None
    real = ids.ne(pad) | labels.ne(_IGNORE_INDEX)
    return real.flip(-1).cumsum(-1).flip(-1).gt(0)


def _length(mask: torch.Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Positions of a row that the model is given: all of the mask's, if nothing else tells."""
    for value in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args[:1]):
        if isinstance(value, torch.Tensor):
            return value.shape[1]
    return mask.shape[1]


def token_mask(mask: torch.Tensor | None, shape: torch.Size) -> torch.Tensor | None:
    """The mask as [T] for a layer whose tokens have `shape`; None where it does not apply.

    A vision tower's patches are no positions of the text.
    """
    if mask is None or mask.numel() != shape.numel():
        return None
    return None if len(shape) == 2 and shape != mask.shape else mask.reshape(-1)


def micro_batch_weight(
    model: nn.Module, labels: torch.Tensor | None, kwargs: Mapping[str, Any]
) -> torch.Tensor | float:
    """This micro-batch's share of the step's target tokens, counted as the HF Trainer does."""
    num_items = kwargs.get("num_items_in_batch")
    if num_items is None or labels is None:
        return 1.0
    if kwargs.get("shift_labels") is not None:
        labels = kwargs["shift_labels"]
    elif LOSS_MAPPING.get(str(getattr(model, "loss_type", None))) is ForCausalLMLoss:
        labels = labels[..., 1:]
    targets = labels.ne(_IGNORE_INDEX).sum()
    return targets / torch.as_tensor(num_items, device=targets.device).clamp_min(1)
