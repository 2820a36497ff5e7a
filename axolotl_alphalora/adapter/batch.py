"""What a batch says of itself: which positions are padding, and how much of the step it is."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from ..hosts.constants import IGNORED
from ..hosts.transformers import LOSS_MAPPING, ForCausalLMLoss
from .tokens import Tokens, is_seq2seq

__all__ = ["Padding", "micro_batch_weight", "padding_of", "positional_names"]

Call = Mapping[str, Any]


def positional_names(model: nn.Module) -> tuple[str, ...]:
    """What the arguments of a model's forward are called that may be given by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)


class Padding(NamedTuple):
    """Which positions of a batch are real, for each kind of tokens that a layer may see.

    Attributes:
        own: [B, S] of the model's own tokens, those of the decoder in an encoder-decoder; None
            where all are real, or nothing tells.
        memory: [B, S] of the tokens that cross-attention looks at, those of the encoder.
    """

    own: torch.Tensor | None = None
    memory: torch.Tensor | None = None

    def of(self, tokens: Tokens, shape: torch.Size) -> torch.Tensor | None:
        """The mask as [T] for a layer that sees such tokens.

        Args:
            tokens: Whose tokens the layer sees.
            shape: Of the layer's input, without features.

        Returns:
            None where all are real, or the mask is not about positions of that shape.
        """
        if tokens == "other":
            return None
        if tokens == "memory":
            return _fitted(self.memory, shape)
        mask = _fitted(self.own, shape)
        # Attention that joins both keeps its keys and values in layers of the decoder.
        return _fitted(self.memory, shape) if mask is None else mask


def padding_of(model: nn.Module, call: Call) -> Padding:
    """Which positions of the batch are real.

    The 2-D attention masks tell, each of the tokens that it is given for; those of multiple
    choice, [B, choices, S], as the model flattens them.

    Args:
        model: The base model.
        call: The arguments of its forward, by name.
    """
    if is_seq2seq(model):
        return Padding(_decoder_mask(model, call), _mask(call, "attention_mask", "input_ids"))
    memory = _mask(call, "encoder_attention_mask", "encoder_hidden_states")
    return Padding(_own_mask(model, call), memory)


def _own_mask(model: nn.Module, call: Call) -> torch.Tensor | None:
    """The mask of a model that has one kind of tokens.

    Packed batches, which have position ids, come without a mask, or with one that is 1 on the
    padding too: there the pad tokens that end a row are not real.
    """
    mask = _mask(call, "attention_mask", "input_ids", "inputs_embeds")
    if mask is not None and call.get("position_ids") is None:
        return mask
    if mask is None and call.get("attention_mask") is not None:
        return None  # a mask of another form, which may hide what it likes
    ended = None
    if call.get("input_ids") is not None and call.get("labels") is not None:
        ended = _before_trailing_padding(model, call["input_ids"], call["labels"])
    if ended is None or mask is None:
        return mask if ended is None else ended
    return ended & mask


def _decoder_mask(model: nn.Module, call: Call) -> torch.Tensor | None:
    """The mask of a decoder's tokens, which the targets tell where no mask does."""
    name = "decoder_attention_mask"
    if call.get(name) is not None:
        return _mask(call, name, "decoder_input_ids", "decoder_inputs_embeds")
    return _before_trailing_padding(model, call.get("decoder_input_ids"), call.get("labels"))


def _mask(call: Call, name: str, *inputs: str) -> torch.Tensor | None:
    """A mask of positions as [B, S] of booleans; None where there is none of that form.

    Args:
        call: The forward's arguments.
        name: The mask's.
        inputs: Names of what it may describe, ids or embeddings.
    """
    mask = call.get(name)
    if not isinstance(mask, torch.Tensor):
        return None
    described = next((call[key] for key in inputs if isinstance(call.get(key), torch.Tensor)), None)
    if mask.ndim == 3 and described is not None and described.shape[:3] == mask.shape:
        return mask.flatten(0, 1).ne(0)
    if mask.ndim != 2:
        return None
    if described is not None and described.ndim > 1:
        # With a key-value cache it also covers what was read before.
        mask = mask[:, -described.shape[1] :]
    return mask.ne(0)


def _before_trailing_padding(
    model: nn.Module, ids: torch.Tensor | None, labels: torch.Tensor | None
) -> torch.Tensor | None:
    """Positions up to a row's last target or last token that is no padding: [B, S]."""
    pad = getattr(getattr(model, "config", None), "pad_token_id", None)
    signs = []
    if isinstance(labels, torch.Tensor) and labels.ndim == 2:
        signs.append(labels.ne(IGNORED))
    if ids is not None:
        if pad is None:
            return None
        signs.append(ids.ne(pad))
    if not signs or signs[0].shape != signs[-1].shape or signs[0].ndim != 2:
        return None
    real = signs[0] | signs[-1]
    return real.flip(-1).cumsum(-1).flip(-1).gt(0)


def _fitted(mask: torch.Tensor | None, shape: torch.Size) -> torch.Tensor | None:
    """The mask as [T] for a layer whose tokens have `shape`; None where it does not apply."""
    if mask is None or mask.numel() != shape.numel():
        return None
    if len(shape) == 2 and shape != mask.shape:
        # Some models, such as XLNet, have the positions first.
        return mask.t().reshape(-1) if shape == mask.shape[::-1] else None
    return mask.reshape(-1)


def micro_batch_weight(model: nn.Module, call: Call) -> torch.Tensor | float:
    """This micro-batch's share of the step's target tokens, counted as the HF Trainer does.

    Args:
        model: The base model.
        call: The arguments of its forward, by name.
    """
    num_items, labels = call.get("num_items_in_batch"), call.get("labels")
    if num_items is None or labels is None:
        return 1.0
    if call.get("shift_labels") is not None:
        labels = call["shift_labels"]
    elif LOSS_MAPPING.get(str(getattr(model, "loss_type", None))) is ForCausalLMLoss:
        labels = labels[..., 1:]
    targets = labels.ne(IGNORED).sum()
    return targets / torch.as_tensor(num_items, device=targets.device).clamp_min(1)
