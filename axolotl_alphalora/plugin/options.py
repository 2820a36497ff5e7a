"""The host's adapter options: those that are honoured, and what is said of one that is not.

The refused ones are rows of `refusals`. Both tables are data: the documentation is generated from
them, and the tests check that every adapter option of the host's schema is in exactly one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

HONOURED: Mapping[str, str] = {
    "load_in_4bit": "nf4 base with double quantisation, as for `qlora`",
    "load_in_8bit": "LLM.int8 base, as for `lora`",
    "bnb_config_kwargs": "bitsandbytes settings of `load_in_4bit`",
    "embeddings_skip_upcast": "whether embeddings stay out of fp32 on a quantised base",
    "lora_r": "rank of one expert, which `alphalora.spend: rank` multiplies and "
    "`alphalora.segments` divides",
    "lora_alpha": "scaling numerator of one expert",
    "lora_dropout": "dropout on the experts' input; most preference and reward trainers switch all "
    "dropout off",
    "lora_target_modules": "linear layers that get experts: names, or one regular expression",
    "lora_target_linear": "every linear layer gets experts, except heads and layers that never run",
    "lora_exclude_modules": "linear layers left out of the targets",
    "lora_modules_to_save": "modules trained in full and saved with the adapter",
    "lora_model_dir": "saved adapter to continue from, evaluate or run; not with DPO, IPO, KTO",
    "lora_on_cpu": "loads a saved adapter on the CPU",
    "peft_layers_to_transform": "indices of the blocks that get experts",
    "peft_layers_pattern": "name of the list that holds the blocks",
    "peft_use_rslora": "scales by lora_alpha / sqrt(lora_r)",
    "loraplus_lr_ratio": "factor on the learning rate of the experts' B, with any optimizer; the "
    "router's is `alphalora.router_lr_ratio`",
    "peft_autocast_adapter_dtype": "whether adapter weights are kept in fp32",
}


def is_on(value: Any, _cfg: Mapping[str, Any]) -> bool:
    return bool(value)


def differs_from(default: Any) -> Callable[[Any, Mapping[str, Any]], bool]:
    return lambda value, _cfg: value is not None and value != default


def more_than_one(value: Any, _cfg: Mapping[str, Any]) -> bool:
    return str(value).isdecimal() and int(value) > 1


def on_quantised_base(value: Any, cfg: Mapping[str, Any]) -> bool:
    return bool(value) and bool(cfg.get("load_in_4bit") or cfg.get("load_in_8bit"))


def with_4bit(value: Any, cfg: Mapping[str, Any]) -> bool:
    return bool(value) and bool(cfg.get("load_in_4bit"))


def without_4bit(value: Any, cfg: Mapping[str, Any]) -> bool:
    return bool(value) and not cfg.get("load_in_4bit")


def where_trl_wraps(value: Any, cfg: Mapping[str, Any]) -> bool:
    return bool(value) and cfg.get("rl") in ("dpo", "ipo", "kto")


def off_where_trl_wraps(value: Any, cfg: Mapping[str, Any]) -> bool:
    return value is False and where_trl_wraps(True, cfg)


def under_fsdp(value: Any, cfg: Mapping[str, Any]) -> bool:
    return bool(value) and bool(cfg.get("fsdp_config") or cfg.get("fsdp"))


def with_4bit_under_fsdp(value: Any, cfg: Mapping[str, Any]) -> bool:
    return with_4bit(value, cfg) and under_fsdp(value, cfg)


def is_ebft(value: Any, _cfg: Mapping[str, Any]) -> bool:
    return value == "ebft"


@dataclass(frozen=True)
class Refusal:
    """One option that does nothing or does harm with `adapter: alphalora`.

    Args:
        key: The YAML key; a dot leads into a nested block.
        reason: Why it is refused.
        remedy: What to do instead.
        example: YAML that is refused because of this row.
        applies: Whether a value of the key, in its configuration, is refused.
        early: Whether it is refused before the host's own validators speak, whose advice is for
            its own adapters.
    """

    key: str
    reason: str
    remedy: str
    example: Mapping[str, Any]
    applies: Callable[[Any, Mapping[str, Any]], bool] = field(default=is_on, repr=False)
    early: bool = False

    def message(self) -> str:
        """The sentence shown to the user."""
        return f"`{self.key}`: {self.reason}. {self.remedy}."
