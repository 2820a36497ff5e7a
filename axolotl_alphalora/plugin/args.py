"""The `alphalora:` block of the YAML and its place in Axolotl's schema.

Axolotl mixes `AlphaLoraArgs` into its own schema (`axolotl/integrations/config.py`), so every
validator here sees the whole configuration and acts for `adapter: alphalora` only. The validated
configuration can be validated again (Ray workers do that), with defaults written out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from axolotl_alphalora.plugin import quantization, refusals

ADAPTER = "alphalora"


class AlphaLoraConfigBlock(BaseModel):
    """Options of the `alphalora:` block.

    What a saved `plan` decides is None when a plan is given, and `experts_per_block` is None when
    `total_experts` is given.
    """

    model_config = ConfigDict(extra="forbid")

    RULED_BY_PLAN: ClassVar[tuple[str, ...]] = (
        "allocation",
        "experts_per_block",
        "total_experts",
        "min_experts",
        "max_experts",
    )

    allocation: dict[str, Any] | None = Field(
        default={"strategy": "alphalora"},
        description=(
            "How the experts are shared out over the blocks: the name of a strategy, or a mapping "
            "`{strategy: name, option: value}`."
        ),
    )
    experts_per_block: float | None = Field(
        default=5,
        gt=0,
        allow_inf_nan=False,
        description="Mean number of experts per block. Give this or `total_experts`.",
    )
    total_experts: int | None = Field(
        default=None, ge=1, description="Number of experts in the whole model."
    )
    min_experts: int | None = Field(
        default=1, ge=1, description="Fewest experts that a block may get."
    )
    max_experts: int | None = Field(
        default=None, ge=1, description="Most experts that a block may get; null: no limit."
    )
    top_k: int = Field(default=2, ge=1, description="Experts that each token is routed to.")
    aux_loss_coef: float = Field(
        default=0.001,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the load-balancing loss; 0 switches it off.",
    )
    plan: str | None = Field(
        default=None,
        min_length=1,
        description="Path of a saved plan to use instead of allocating anew.",
    )

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise ValueError(
                f"`alphalora:` must be a block of options, got {data!r}. Write for example "
                "`alphalora: {experts_per_block: 5}`."
            )
        unknown = [key for key in data if key not in cls.model_fields]
        if unknown:
            raise ValueError(
                " ".join(_unknown(f"{ADAPTER}.", key, cls.model_fields) for key in unknown)
            )
        return data

    @field_validator(
        "experts_per_block",
        "total_experts",
        "min_experts",
        "max_experts",
        "top_k",
        "aux_loss_coef",
        mode="before",
    )
    @classmethod
    def _refuse_booleans(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"expected a number, got {str(value).lower()}")
        return value

    @field_validator("allocation", mode="before")
    @classmethod
    def _as_mapping(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"strategy": value}
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise ValueError("expected the name of a strategy or `{strategy: name, option: value}`")
        strategy = value.get("strategy")
        if not isinstance(strategy, str) or not strategy.strip():
            raise ValueError(
                "`alphalora.allocation` needs a `strategy`, for example "
                "`allocation: {strategy: alphalora}`"
            )
        return dict(value)

    @model_validator(mode="after")
    def _settle_what_rules(self) -> AlphaLoraConfigBlock:
        given = {name for name in self.model_fields_set if getattr(self, name) is not None}
        if self.plan is not None:
            self._yield_to_plan(given)
            return self
        if self.total_experts is not None:
            if "experts_per_block" in given:
                raise ValueError(
                    "`alphalora.experts_per_block` and `alphalora.total_experts` both set the "
                    "number of experts. Keep one of them."
                )
            self.experts_per_block = None
        self._fill_nulls()
        self._check_allocation()
        self._check_bounds()
        return self

    def _yield_to_plan(self, given: set[str]) -> None:
        ruled = [name for name in self.RULED_BY_PLAN if name in given]
        if ruled:
            names = ", ".join(f"`alphalora.{name}`" for name in ruled)
            raise ValueError(
                f"`alphalora.plan` already decides {names}. Remove `alphalora.plan` to allocate "
                f"anew, or remove {names} to use the plan."
            )
        for name in self.RULED_BY_PLAN:
            setattr(self, name, None)

    def _fill_nulls(self) -> None:
        if self.allocation is None:
            self.allocation = {"strategy": "alphalora"}
        if self.min_experts is None:
            self.min_experts = 1
        if self.experts_per_block is None and self.total_experts is None:
            self.experts_per_block = 5

    def _check_allocation(self) -> None:
        from axolotl_alphalora.allocation import resolve_options

        options = dict(self.allocation or {})
        try:
            resolve_options(options.pop("strategy"), options)
        except ValueError as error:
            raise ValueError(f"`alphalora.allocation`: {error}") from error

    def _check_bounds(self) -> None:
        least = self.min_experts or 1
        mean, most = self.experts_per_block, self.max_experts
        if most is not None and most < least:
            raise ValueError(
                f"`alphalora.max_experts: {most}` is less than `alphalora.min_experts: {least}`."
            )
        if mean is not None and mean < least:
            raise ValueError(
                f"`alphalora.experts_per_block: {mean:g}` is less than `alphalora.min_experts: "
                f"{least}`, which every block gets."
            )
        if mean is not None and most is not None and mean > most:
            raise ValueError(
                f"`alphalora.experts_per_block: {mean:g}` is more than `alphalora.max_experts: "
                f"{most}`, which no block may exceed."
            )
        if most is not None and self.top_k > most:
            raise ValueError(
                f"`alphalora.top_k: {self.top_k}` is more than `alphalora.max_experts: {most}`, "
                "so no block has that many experts to route to."
            )


class AlphaLoraArgs(BaseModel):
    """What the plugin adds to Axolotl's schema."""

    alphalora: AlphaLoraConfigBlock | None = Field(
        default=None,
        description="Options of `adapter: alphalora`. Without the block, its defaults apply.",
    )
    alphalora_given: list[str] | None = Field(
        default=None,
        description="Set by the plugin: the keys of the `alphalora:` block that the YAML holds.",
    )
    lora_exclude_modules: str | list[str] | None = Field(
        default=None,
        description="Linear layers left out of the targets: names, or one regular expression.",
    )

    if TYPE_CHECKING:
        adapter: str | None
        load_in_4bit: bool | None
        load_in_8bit: bool | None
        overrides_of_model_kwargs: dict[str, Any] | None

    @model_validator(mode="before")
    @classmethod
    def _check_alphalora_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        if data.get("adapter") == ADAPTER:
            _check_unread_keys(data, cls.model_fields)
            if data.get("inference") and not data.get("lora_model_dir"):
                from axolotl_alphalora.plugin.trainer import warn_fresh_adapter

                warn_fresh_adapter("axolotl inference")
            given = data.get(ADAPTER)
            if data.get("alphalora_given") is None and isinstance(given, Mapping | None):
                # Validated configurations hold all defaults and may be validated again.
                keys = [key for key, value in (given or {}).items() if value is not None]
                data = {**data, "alphalora_given": keys}
            if given is None:
                return {**data, ADAPTER: {}}
        elif data.get(ADAPTER) is not None:
            raise ValueError(
                f"The `alphalora:` block needs `adapter: alphalora`, got `adapter: "
                f"{data.get('adapter') or 'null'}`. Set the adapter or remove the block."
            )
        return data

    @model_validator(mode="after")
    def _check_alphalora_run(self) -> AlphaLoraArgs:
        if self.adapter != ADAPTER:
            return self
        cfg = self.model_dump(exclude_none=True, warnings=False)
        refusals.check(cfg)
        _check_lora_options(cfg)
        self.overrides_of_model_kwargs = quantization.request(
            self.overrides_of_model_kwargs, self.load_in_4bit, self.load_in_8bit
        )
        return self


def _unknown(prefix: str, key: Any, valid: Iterable[str]) -> str:
    close = get_close_matches(str(key), list(valid), n=1)
    advice = f"Did you mean `{prefix}{close[0]}`?" if close else f"Valid: {', '.join(valid)}."
    return f"`{prefix}{key}` is not an option. {advice}"


def _check_unread_keys(data: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Refuses misspelt adapter options, which Axolotl would drop without a word."""
    options = AlphaLoraConfigBlock.model_fields
    adapter_options = [
        name for name in fields if name.startswith(("lora_", "peft_", "loraplus_", ADAPTER))
    ]
    errors = []
    for key, value in data.items():
        if key in fields or value is None or not isinstance(key, str):
            continue
        if key in options:
            errors.append(f"`{key}` belongs into the `alphalora:` block: `alphalora.{key}`.")
        elif key.startswith(("lora_", "peft_", "loraplus_")) or _resembles(key, ADAPTER):
            close = get_close_matches(key, adapter_options, n=1)
            advice = f"Did you mean `{close[0]}`?" if close else "Remove it."
            errors.append(f"`{key}` is not an option of Axolotl or of a loaded plugin. {advice}")
    if errors:
        raise ValueError(" ".join(errors))


def _resembles(key: str, name: str) -> bool:
    return bool(get_close_matches(key.lower(), [name], cutoff=0.8))


def _check_lora_options(cfg: Mapping[str, Any]) -> None:
    if cfg.get("lora_model_dir"):
        return
    missing = [key for key in ("lora_r", "lora_alpha") if not cfg.get(key)]
    if missing:
        names = " and ".join(f"`{key}`" for key in missing)
        raise ValueError(
            f"`adapter: alphalora` needs {names}: the rank and the scaling of one expert, for "
            "example `lora_r: 8` and `lora_alpha: 16`."
        )
    if not (cfg.get("lora_target_modules") or cfg.get("lora_target_linear")):
        raise ValueError(
            "`adapter: alphalora` needs `lora_target_linear: true`, or `lora_target_modules` with "
            "the names of the linear layers that get experts."
        )
    for key, valid in (("lora_r", cfg["lora_r"] >= 1), ("lora_dropout", _is_rate(cfg))):
        if not valid:
            limits = "at least 1" if key == "lora_r" else "at least 0 and below 1"
            raise ValueError(f"`{key}: {cfg[key]}` must be {limits}.")


def _is_rate(cfg: Mapping[str, Any]) -> bool:
    return bool(0 <= cfg.get("lora_dropout", 0) < 1)
