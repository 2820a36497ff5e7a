"""The `alphalora:` block of the YAML. Knows nothing of the host's other keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..allocation import Budget, registry, resolve_budget
from ..allocation.budget import KINDS
from ..allocation.records import check_spend
from ..files import expanded
from ..mixture import Mixture

ADAPTER = "alphalora"
BUDGET = tuple(field.name for field in fields(Budget))
"""The keys of the block that make its budget."""
MIXTURE = tuple(field.name for field in fields(Mixture))
"""The keys of the block that say what a mixture looks like in a layer."""

PAPER: dict[str, Any] = {
    "experts_per_block": 5.0,
    "min_experts": 1,
    "spend": "experts",
    "top_k": 2,
    "segments": 1,
    "router_rank": None,
    "share_a": False,
    "aux_loss_coef": 0.001,
    "balance_over": "micro_batch",
    "router_lr_ratio": 1.0,
}
"""What AlphaLoRA (arXiv 2410.10054) trains with: MoLA's adapter, with its settings."""
PAPER_ALLOCATION: dict[str, Any] = {
    "strategy": "alphalora",
    "estimator": "xmin_peak",
    "window": None,
    "aggregate": "mean",
    "normalize": False,
    "beta": 2.5,
    "granularity": "block",
    "rounding": "largest_remainder",
}
"""How it shares experts out (section 3), without what is wrong in the released code."""

TopK = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)]


class AlphaLoraConfigBlock(BaseModel):
    """Options of the `alphalora:` block.

    What a saved `plan` decides is None when a plan is given. Of the budgets at most one is set, and
    none where the strategy has numbers of its own.
    """

    model_config = ConfigDict(extra="forbid")

    RULED_BY_PLAN: ClassVar[tuple[str, ...]] = ("allocation", *BUDGET, "spend")

    preset: Literal["paper"] | None = Field(
        default=None,
        description="paper: AlphaLoRA's own settings, where you say nothing else.",
    )
    allocation: dict[str, Any] | None = Field(
        default={"strategy": "alphalora"},
        description=(
            "How the experts are shared out: the name of a strategy, `name:value`, or a mapping "
            "`{strategy: name, option: value}`."
        ),
    )
    experts_per_block: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Mean number of experts per block: 5, unless the strategy has its own numbers.",
    )
    total_experts: int | None = Field(
        default=None, ge=1, description="Instead: number of experts, summed over the blocks."
    )
    total_parameters: int | None = Field(
        default=None, ge=1, description="Instead: trainable parameters of experts and routers."
    )
    memory_mib: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Instead: MiB of the adapter, its gradients and its optimizer state.",
    )
    min_experts: int | None = Field(
        default=None,
        ge=0,
        description="Fewest experts that a module may get; unset: 1, `counts`: 0.",
    )
    max_experts: int | None = Field(
        default=None, ge=1, description="Most experts that a module may get; null: no limit."
    )
    spend: Literal["experts", "rank"] | None = Field(
        default="experts",
        description="rank: one expert of N times the rank, in place of N experts.",
    )
    top_k: TopK = Field(
        default=2,
        description="Experts that each token uses: a number, or a share such as 0.25.",
    )
    segments: int = Field(
        default=1,
        ge=1,
        description="Finer experts: parts that each one is cut into; must divide lora_r.",
    )
    router_rank: int | None = Field(
        default=None, ge=1, description="Rank of the routers, in two factors; null: full ones."
    )
    share_a: bool = Field(
        default=False,
        description="true: the experts of a layer share A, the down projection.",
    )
    aux_loss_coef: float = Field(
        default=0.001,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the load-balancing loss; 0 switches it off.",
    )
    balance_over: Literal["micro_batch", "global_batch"] = Field(
        default="micro_batch",
        description="global_batch: the balance counts tokens of all processes.",
    )
    router_lr_ratio: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="Factor on the learning rate of the routers.",
    )
    log_blocks_every: int = Field(
        default=10,
        ge=0,
        description="Block statistics in the trackers with every Nth log; 0: never.",
    )
    init_from: str | None = Field(
        default=None,
        min_length=1,
        description="Directory of a plain LoRA that a new adapter starts from.",
    )
    init_split: Literal["copy", "svd"] = Field(
        default="copy",
        description="copy or svd: every expert gets a copy, or a share of its singular directions.",
    )
    plan: str | None = Field(
        default=None,
        min_length=1,
        description="Path of a saved plan to use instead of allocating anew.",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_keys(cls, data: Any) -> Any:
        """Name unknown keys; one that is left blank means its default."""
        if not isinstance(data, Mapping):
            raise ValueError(
                f"`alphalora:` must be a block of options, got {data!r}. Write for example "
                "`alphalora: {experts_per_block: 5}`."
            )
        unknown = [key for key in data if key not in cls.model_fields]
        if unknown:
            lines = (_unknown(key, data[key], cls.model_fields) for key in unknown)
            raise ValueError(" ".join(lines))
        return _without_blanks(data)

    @property
    def budget(self) -> Budget | None:
        """What may be spent; None where nothing is said about it."""
        given = {key: getattr(self, key) for key in BUDGET if getattr(self, key) is not None}
        return Budget(**given) if given else None

    @property
    def mixture(self) -> Mixture:
        """What a mixture looks like in a layer."""
        return Mixture(**{key: getattr(self, key) for key in MIXTURE})

    @field_validator(*MIXTURE, mode="before")
    @classmethod
    def _check_mixture(cls, value: Any, info: ValidationInfo) -> Any:
        try:
            Mixture(**{str(info.field_name): value})
        except TypeError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator(*BUDGET, "aux_loss_coef", "router_lr_ratio", "log_blocks_every", mode="before")
    @classmethod
    def _refuse_booleans(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"expected a number, got {str(value).lower()}")
        return value

    @field_validator("allocation", mode="before")
    @classmethod
    def _as_mapping(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = registry().read(value)
        if not isinstance(value, Mapping):
            raise ValueError("expected the name of a strategy or `{strategy: name, option: value}`")
        strategy = value.get("strategy")
        if isinstance(strategy, str) and ":" in strategy:
            value = {
                **registry().read(strategy),
                **{k: v for k, v in value.items() if k != "strategy"},
            }
            strategy = value["strategy"]
        if not isinstance(strategy, str) or not strategy.strip():
            raise ValueError(
                "`alphalora.allocation` needs a `strategy`, for example "
                "`allocation: {strategy: alphalora}`"
            )
        return _without_blanks(plain(value))

    @field_validator("init_from", "plan")
    @classmethod
    def _expand(cls, value: str) -> str:
        return expanded(value)

    @model_validator(mode="after")
    def _settle_what_rules(self) -> AlphaLoraConfigBlock:
        if self.init_split != "copy" and self.init_from is None:
            raise ValueError(
                f"`alphalora.init_split: {self.init_split}` says how to start from a LoRA, but "
                "`alphalora.init_from` names none. Set it, or remove `alphalora.init_split`."
            )
        given = set(self.model_fields_set)
        if self.preset is not None:
            self._fill_in_the_papers(given)
        if self.plan is not None:
            self._yield_to_plan(given)
            return self
        self._settle_budget()
        self._check_bounds("experts_per_block" in given)
        return self

    def _fill_in_the_papers(self, given: set[str]) -> None:
        """Settings that neither the YAML nor another strategy decides; a plan still may."""
        allocation = self.allocation or {"strategy": "alphalora"}
        decided = set(given)
        if allocation["strategy"] != PAPER_ALLOCATION["strategy"]:
            decided |= {*KINDS, "min_experts"}
        else:
            self.allocation = {**PAPER_ALLOCATION, **allocation}
            if any(getattr(self, key) is not None for key in KINDS):
                decided |= set(KINDS)
        for key, value in PAPER.items():
            if key not in decided:
                setattr(self, key, value)

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

    def _settle_budget(self) -> None:
        """Fill in the defaults, which depend on the strategy."""
        self.allocation = self.allocation or {"strategy": "alphalora"}
        self.spend = self.spend or "experts"
        options = dict(self.allocation)
        name = options.pop("strategy")
        try:
            strategy = registry().get(name)
            _check_place(options, strategy.fields, type(self).model_fields)
            settings = strategy.options(options)
        except ValueError as error:
            raise ValueError(f"`alphalora.allocation`: {error}") from error
        try:
            budget = resolve_budget(name, settings, self.budget)
        except ValueError as error:
            raise ValueError(f"`alphalora:` {error}") from error
        check_spend(self.spend, self.mixture, f"{ADAPTER}.")
        self.experts_per_block = budget.experts_per_block
        if settings.budget_use != "none":
            self.min_experts = budget.min_experts

    def _check_bounds(self, given: bool) -> None:
        least = self.min_experts or 0
        mean, most = self.experts_per_block, self.max_experts
        said = "" if given else ", the default,"
        if mean is not None and mean < least:
            raise ValueError(
                f"`alphalora.experts_per_block: {mean:g}`{said} is less than "
                f"`alphalora.min_experts: {least}`, which every block gets."
            )
        if mean is not None and most is not None and mean > most:
            raise ValueError(
                f"`alphalora.experts_per_block: {mean:g}`{said} is more than "
                f"`alphalora.max_experts: {most}`, which no block may exceed."
            )
        if most is not None and self.top_k > most and self.spend == "experts":
            raise ValueError(
                f"`alphalora.top_k: {self.top_k}` is more than `alphalora.max_experts: {most}`, "
                "so no block has that many experts to route to."
            )


def _without_blanks(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value is not None}


def plain(value: Any) -> Any:
    """Return a configuration's value as plain dicts and lists."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    return value


def _unknown(key: Any, value: Any, valid: Iterable[str]) -> str:
    close = get_close_matches(str(key), list(valid), n=1)
    if str(key).startswith(("lora_", "peft_", "loraplus_")):
        advice = f"Keys of Axolotl's own stand outside of the `{ADAPTER}:` block."
    elif close:
        advice = f"Did you mean `{ADAPTER}.{close[0]}`?"
    elif key in registry().get(ADAPTER).fields:
        advice = (
            "Options of a strategy stand in its `allocation`: "
            f"`allocation: {{strategy: {ADAPTER}, {key}: {value}}}`."
        )
    else:
        advice = f"Valid: {', '.join(valid)}."
    return f"`{ADAPTER}.{key}` is not an option. {advice}"


def _check_place(options: Iterable[str], own: Iterable[str], block: Iterable[str]) -> None:
    """Refuse an option of the block among those of a strategy."""
    for key in options:
        if key in block and key not in own:
            raise ValueError(
                f"`{key}` is no option of a strategy but of the `{ADAPTER}:` block: write it "
                "beside `allocation`."
            )
