"""A row of the table of refused options, and the conditions under which one applies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


def is_on(value: Any, _cfg: Mapping[str, Any]) -> bool:
    return bool(value)


def differs_from(default: Any) -> Callable[[Any, Mapping[str, Any]], bool]:
    return lambda value, _cfg: value is not None and value != default


def more_than_one(value: Any, _cfg: Mapping[str, Any]) -> bool:
    return int(value or 1) > 1


def on_quantised_base(value: Any, cfg: Mapping[str, Any]) -> bool:
    return bool(value) and bool(cfg.get("load_in_4bit") or cfg.get("load_in_8bit"))


def with_4bit(value: Any, cfg: Mapping[str, Any]) -> bool:
    return bool(value) and bool(cfg.get("load_in_4bit"))


def without_4bit(value: Any, cfg: Mapping[str, Any]) -> bool:
    return bool(value) and not cfg.get("load_in_4bit")


def where_trl_wraps(value: Any, cfg: Mapping[str, Any]) -> bool:
    return bool(value) and cfg.get("rl") in ("dpo", "ipo", "kto")


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
