"""What a batch says of itself: which positions are padding, and how much of the step it is.

And whose tokens a layer sees (its model's own, those that cross-attention looks at, or others), and
in which of its model's forward passes a layer runs, or is recomputed.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from ..hosts.constants import IGNORED
from ..hosts.torch import next_node_number, running_node_number
from ..hosts.transformers import LOSS_MAPPING, ForCausalLMLoss

Tokens = Literal["own", "memory", "other"]
"""`own`: the text's, in an encoder-decoder the decoder's; `memory`: what the decoder's
cross-attention looks at, the encoder's; `other`: neither, such as an image's patches."""

# As the models of transformers call them; T5 writes EncDecAttention, GPT-2 joins both in c_attn.
_CROSS_ATTENTION = re.compile(r"cross|enc(oder)?_?(dec(oder)?)?_?att", re.IGNORECASE)
_KEY_OR_VALUE = re.compile(
    r"(to_|w)?[kv](_?proj|_lin)?|(key|value|kv|key_value)s?(_?proj(ection)?)?|c_attn", re.IGNORECASE
)

_SPANS = ("start_positions", "end_positions")


def is_seq2seq(model: nn.Module) -> bool:
    """Whether a model has an encoder and a decoder, each with tokens of its own."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return True
    return "decoder_input_ids" in inspect.signature(type(model).forward).parameters


def tokens_of(model: nn.Module, names: list[str]) -> dict[str, Tokens]:
    """Whose tokens the modules of a base model see."""
    decoder = _path(model, "get_decoder")
    encoder = _path(model, "get_encoder") if is_seq2seq(model) else None
    composite = encoder is None and decoder and _is_composite(model)
    return {name: _tokens(name, decoder, encoder, bool(composite)) for name in names}


def _tokens(name: str, decoder: str | None, encoder: str | None, composite: bool) -> Tokens:
    if encoder and name.startswith(f"{encoder}."):
        return "memory"
    if decoder and name.startswith(f"{decoder}."):
        *path, leaf = name.removeprefix(decoder).split(".")
        crossing = any(_CROSS_ATTENTION.search(part) for part in path)
        return "memory" if crossing and _KEY_OR_VALUE.fullmatch(leaf) else "own"
    # Beside the text model of a multimodal one lie its towers, and at the top the heads.
    return "other" if composite and "." in name else "own"


def _path(model: nn.Module, getter: str) -> str | None:
    """Name of the submodule that a method of transformers' models returns; None if there is none.

    An empty name stands for the model itself.
    """
    get: Any = getattr(model, getter, None)
    if get is None:
        return None
    found = get()
    return next((name for name, module in model.named_modules() if module is found), None)


def _is_composite(model: nn.Module) -> bool:
    config: Any = getattr(model, "config", None)
    text = getattr(config, "get_text_config", lambda: config)()
    return text is not config


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
    """A mask of positions as [B, S] of booleans; None where there is none of that form."""
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


def computes_loss(call: Call) -> bool:
    """Whether a model is given what it computes a loss from, by the names that transformers knows.

    Among them are the ends of an answer, and what CLIP is told.
    """
    given = {name for name, value in call.items() if value is not None}
    labels = any("label" in name for name in given)
    return labels or not given.isdisjoint(_SPANS) or bool(call.get("return_loss"))


def micro_batch_weight(model: nn.Module, call: Call) -> torch.Tensor | float:
    """This micro-batch's share of the step's target tokens, counted as the HF Trainer does."""
    num_items, labels = call.get("num_items_in_batch"), call.get("labels")
    if num_items is None or labels is None:
        return 1.0
    if call.get("shift_labels") is not None:
        labels = call["shift_labels"]
    elif LOSS_MAPPING.get(str(getattr(model, "loss_type", None))) is ForCausalLMLoss:
        labels = labels[..., 1:]
    targets = labels.ne(IGNORED).sum()
    return targets / torch.as_tensor(num_items, device=targets.device).clamp_min(1)


Phase = Literal["train", "eval"]
PASSES = 64
"""Training passes before one backward that a recomputation can be told from each other."""


class Decision(NamedTuple):
    """What one router decided in one call of its layer; see `LoadBalancer.record`."""

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
        labelled: Whether the model was given labels of some kind, and so computes a loss.
        decisions: What each router decided in each call, until it is counted.
        counted: Whether it was.
        ran: The adapters' layers that ran, named as their routers would be.
        first: Sequence number of the first autograd node made in it.
        end: That of the first node made after it.
    """

    phase: Phase | None = None
    padding: Padding = Padding()
    weight: torch.Tensor | float = 1.0
    labelled: bool = False
    decisions: dict[str, list[Decision]] = field(default_factory=dict)
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
        """Start a pass."""
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
