"""Configuration of the AlphaLoRA adapter."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from peft import PeftConfig

from ..files import FORMAT_SINCE, METHOD, check_version, expert_scaling
from ..mixture import Mixture

BALANCE_OVER = ("micro_batch", "global_batch")
INIT_SPLITS = ("copy", "svd")


class AlphaLoraPeftType(str, Enum):  # noqa: UP042 (PEFT takes the name from str(), after a dot)
    """The method's name in `adapter_config.json`; PEFT's own enum cannot be extended."""

    ALPHALORA = METHOD


@dataclass
class AlphaLoraConfig(PeftConfig):
    """Configuration of an [`AlphaLoraModel`]: LoRA experts, their number per module, the router.

    Args:
        r (`int`):
            Rank of one expert, in every module that `rank_pattern` does not name.
        lora_alpha (`float`):
            Scale: every expert's output is multiplied with `segments * lora_alpha / rank`, with the
            rank of its own module. One expert of rank `N * r` therefore counts as much as `N`
            experts of rank `r` whose gates are all `1 / N`, cut or not.
        lora_dropout (`float`):
            Dropout on the experts' input. The router sees the input without it.
        use_rslora (`bool`):
            Scale with `segments * lora_alpha / sqrt(rank)` instead (rank-stabilised LoRA). One
            expert of rank `N * r` then counts `sqrt(N)` times as much as those `N` experts.
        target_modules (`Union[list[str], str]`, *optional*):
            Names or a regex of the linear layers to adapt, or `"all-linear"`. Not needed where
            `num_experts` is a mapping.
        exclude_modules (`Union[list[str], str]`, *optional*):
            Names or a regex of modules to leave alone.
        layers_to_transform (`Union[list[int], int]`, *optional*):
            Indices of the blocks to adapt. Unlike in PEFT's LoRA, it counts for exact names too.
        layers_pattern (`Union[list[str], str]`, *optional*):
            Name of the list of blocks, where it is not the usual one.
        modules_to_save (`list[str]`, *optional*):
            Modules trained in full and saved beside the experts.
        num_experts (`Union[int, dict[str, int]]`):
            Experts per target module: one number for all, or a mapping from a module's exact name
            to its number, where 0 leaves the module alone. The config of the adapted model always
            holds the resolved mapping, which is what is saved, and which alone says what an
            adapter adapts when it is opened; the config that was passed keeps its own.
        rank_pattern (`dict[str, int]`):
            Rank of a module's experts where it differs from `r`: a mapping from the module's exact
            name, as in `num_experts`, to the rank. Unlike the `rank_pattern` of PEFT's LoRA, whose
            keys are regular expressions for the end of a name, it takes no patterns.
        top_k (`Union[int, float]`):
            Experts used per token. A module with fewer experts uses all of them. A number in
            (0, 1) is a share of each module's experts, at least one of them.
        segments (`int`):
            Parts that every expert is cut into. A module of `N` experts of rank `r` then holds
            `segments * N` experts of rank `r / segments` and uses `segments` times as many of them
            per token; total rank, active rank and effective scale stay. `r`, `num_experts` and
            `top_k` are those before the cut.
        router_rank (`int`, *optional*):
            Rank of the routers, whose logits are then `V (U x)`; None for full ones.
        share_a (`bool`):
            Whether the experts of a module share one `A` of rank `r`, in front of a `B` for each.
        aux_loss_coef (`float`):
            Coefficient of the load-balancing loss, which is averaged over the routers of a block
            and summed over blocks. 0 switches it off.
        balance_over (`str`):
            Over which tokens the load-balancing loss counts each expert's share: those of one
            process's `"micro_batch"`, or, with an all-reduce for each router, those of all
            processes (`"global_batch"`).
        init_weights (`bool`):
            Start with all `B` at zero, so that the adapted model equals the base. `False` draws
            them at random, which only tests need.
        init_from (`str`, *optional*):
            Directory of a plain LoRA, saved by PEFT, that the experts of a new adapter start from,
            such that the adapted model computes what it did with the LoRA. Read once, when the
            adapter is added; never saved, and None in the config of the adapted model.
        init_split (`str`):
            How: `"copy"` gives every expert a copy of the LoRA, `"svd"` shares its singular
            directions out over the experts, which takes a `top_k` that uses all of them.
        plan (`dict`, *optional*):
            The allocation plan that the counts come from, as one JSON object. Provenance only.
        base_blocks (`dict[str, int]`, *optional*):
            Name of each list of blocks of the base model that has experts, to its length. Written
            when the adapter is added; a base of another depth is refused when it is opened.
        needs_version (`str`):
            Oldest release of axolotl-alphalora that reads the adapter. Written when it is saved.

    Attributes:
        saved (`bool`): Whether the config was read from a saved adapter. Not saved itself.

    Raises:
        ValueError: If a value is out of range, or a rank is no multiple of `segments`; the message
            names the field.
        TypeError: If a count or a rank is not a whole number (the message names the module), a
            field has another type, or `rank_pattern` is no mapping.
    """

    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    use_rslora: bool = False
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    num_experts: int | dict[str, int] = 4
    rank_pattern: dict[str, int] = field(default_factory=dict)
    top_k: int | float = 2
    segments: int = 1
    router_rank: int | None = None
    share_a: bool = False
    aux_loss_coef: float = 0.001
    balance_over: str = "micro_batch"
    init_weights: bool = True
    init_from: str | None = None
    init_split: str = "copy"
    plan: dict[str, Any] | None = None
    base_blocks: dict[str, int] | None = None
    needs_version: str = FORMAT_SINCE

    def __post_init__(self) -> None:
        super().__post_init__()
        # PEFT names the method, as plain text, only where it reads a config that was saved.
        self.saved: bool = type(self.peft_type) is str
        self.peft_type = AlphaLoraPeftType.ALPHALORA
        check_version(self.needs_version)
        self.needs_version = FORMAT_SINCE
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        if isinstance(self.modules_to_save, list):
            self.modules_to_save = list(self.modules_to_save)  # which PEFT adds to
        self._check_numbers()
        self._check_counts()
        self._check_ranks()
        self._check_start()
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern has no effect without layers_to_transform: set both.")
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            if self.layers_to_transform is not None:
                raise ValueError(
                    "layers_to_transform cannot be combined with a regex in target_modules: put "
                    "the block's index into the regex, or list module names."
                )

    @property
    def counted(self) -> list[str] | None:
        """The modules that `num_experts` gives experts, where it is the list of targets.

        It is that in an adapter that is opened, whatever `target_modules` says, and in a new one
        without `target_modules`; None elsewhere.
        """
        if not isinstance(self.num_experts, dict):
            return None
        if not self.saved and self.target_modules is not None:
            return None
        return [name for name, count in self.num_experts.items() if count]

    @property
    def mixture(self) -> Mixture:
        """The shape of its mixtures, whatever the number and the rank of a module's experts."""
        return Mixture(self.top_k, self.segments, self.router_rank, self.share_a)

    def rank_of(self, module: str) -> int:
        """Rank of each expert of the module of that exact name, before it is cut."""
        return self.rank_pattern.get(module, self.r)

    def scaling(self, rank: int) -> float:
        """Factor on the output of an expert that had that rank before it was cut."""
        return self.segments * expert_scaling(self.lora_alpha, rank, self.use_rslora)

    def without_start(self) -> AlphaLoraConfig:
        """The same settings for an adapter that is there, and starts from nothing."""
        config = copy.copy(self)
        config.init_from, config.init_split = None, INIT_SPLITS[0]
        return config

    def to_dict(self) -> dict[str, Any]:
        """The settings as they are saved: what an adapter started from is not among them."""
        saved = super().to_dict()
        return {k: v for k, v in saved.items() if k not in ("init_from", "init_split")}

    def _check_numbers(self) -> None:
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise ValueError(f"r must be a whole number of at least 1, not {self.r!r}.")
        if not (_is_number(self.lora_alpha) and self.lora_alpha > 0):
            raise ValueError(f"lora_alpha must be a number above 0, not {self.lora_alpha!r}.")
        if not 0.0 <= self.lora_dropout < 1.0:
            raise ValueError(f"lora_dropout must be in [0, 1), not {self.lora_dropout!r}.")
        if not (_is_number(self.aux_loss_coef) and self.aux_loss_coef >= 0.0):
            raise ValueError(f"aux_loss_coef must be at least 0, not {self.aux_loss_coef!r}.")
        if self.balance_over not in BALANCE_OVER:
            raise ValueError(
                f"balance_over must be one of {', '.join(BALANCE_OVER)}, not {self.balance_over!r}."
            )

    def _check_counts(self) -> None:
        if not isinstance(self.num_experts, Mapping):
            _check_count("num_experts", self.num_experts, minimum=1)
            return
        self.num_experts = dict(self.num_experts)
        for module, count in self.num_experts.items():
            _check_count(f"num_experts[{module!r}]", count, minimum=0)
        if not any(self.num_experts.values()):
            raise ValueError("num_experts gives no module an expert: at least one count must be 1.")

    def _check_ranks(self) -> None:
        if not isinstance(self.rank_pattern, Mapping):
            raise TypeError(
                "rank_pattern must be a mapping from a module's exact name to a rank, not "
                f"{self.rank_pattern!r}."
            )
        self.rank_pattern = dict(self.rank_pattern)
        for module, rank in self.rank_pattern.items():
            _check_count(f"rank_pattern[{module!r}]", rank, minimum=1)
            self.mixture.check_rank(rank, f"rank_pattern[{module!r}]")
        counts = self.num_experts if isinstance(self.num_experts, dict) else {"": 1}
        if any(count and module not in self.rank_pattern for module, count in counts.items()):
            self.mixture.check_rank(self.r)

    def _check_start(self) -> None:
        if self.init_split not in INIT_SPLITS:
            raise ValueError(
                f"init_split must be one of {', '.join(INIT_SPLITS)}, not {self.init_split!r}."
            )
        if self.init_from is None:
            if self.init_split != INIT_SPLITS[0]:
                raise ValueError("init_split has no effect without init_from: set both.")
            return
        if not self.init_from or not isinstance(self.init_from, str | os.PathLike):
            raise ValueError(f"init_from must be a directory, not {self.init_from!r}.")
        self.init_from = os.path.expanduser(os.fspath(self.init_from))
        if not self.init_weights:
            raise ValueError("init_from starts the other experts at zero: leave init_weights true.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _check_count(name: str, count: object, minimum: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"{name} must be a whole number (a plain int), not {count!r}.")
    if count < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {count}.")
