"""The methods of the study: a table of names, and what builds each on a base model."""

from __future__ import annotations

import math
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from axolotl_alphalora.adapter import AlphaLoraConfig, AlphaLoraLayer
from axolotl_alphalora.allocation import Plan
from axolotl_alphalora.mixture import Mixture
from axolotl_alphalora.planning import (
    Planner,
    PlanRequest,
    plan_from_model,
    plan_request,
    read_block,
)
from axolotl_alphalora.sensitivity import measure_sensitivity

from .. import contestants
from .bases import load
from .cells import ALLOCATIONS, CUT, EQUALS, STRATEGIES, UNTRAINED
from .devices import RoundedLinear
from .rows import Row

RANK, EXPERTS, TOP_K = 8, 5, 2
"""Of an expert; experts of a block in the mean; of a token."""

SAMPLES = 64
"""Training rows that a plan is measured on, where its strategy does not say."""

SCALE = 2.0
"""lora_alpha over the rank: of an expert, and of every plain LoRA."""

BALANCE = 0.001
"""Weight of the load-balancing loss."""

SHAPE: dict[str, Any] = {"segments": 1, "router_rank": None, "share_a": False}
"""Options of a mixture that no plan depends on whose budget is one of experts.

They and all others are the study's own: defaults of the package may change.
"""


class Unavailable(Exception):
    """A method cannot be built here; says why."""


@dataclass(frozen=True)
class Bench:
    """What a method is built on.

    Attributes:
        model: The base model, frozen.
        directory: Its files, which plans are made of.
        rows: The training rows, which sensitivities are measured on.
        seed: Of the start of the weights.
    """

    model: Any
    directory: str
    rows: Sequence[Row]
    seed: int


@dataclass(frozen=True)
class Built:
    """A model that is ready to be trained.

    Attributes:
        model: With its adapter.
        facts: What there is to say of it.
        extra_loss: What is added to the loss of each pass, where the model's code leaves that to
            its trainer.
    """

    model: Any
    facts: dict[str, Any] = field(default_factory=dict)
    extra_loss: Callable[[], Tensor] | None = None


Builder = Callable[[Bench], Built]


def lora(
    bench: Bench, *, rank: int = 0, rslora: bool = False, equal_to: Mixture | None = None
) -> Built:
    """A plain LoRA on all linear layers, of a rank or with a uniform mixture's parameters."""
    if equal_to is not None:
        rank = contestants.equal_rank(bench.model, equal_to, EXPERTS, RANK)
    config = LoraConfig(
        r=rank,
        lora_alpha=SCALE * rank,  # type: ignore[arg-type]
        use_rslora=rslora,
        lora_dropout=0.0,
        target_modules="all-linear",
    )
    torch.manual_seed(bench.seed)
    return Built(get_peft_model(bench.model, config), {"rank": rank, "active_rank": rank})


def linear_shapes(bench: Bench) -> list[tuple[int, int]]:
    """(out, in) features of the layers that get experts."""
    return list(_request(bench.directory, {}).targets.resolve(bench.model).values())


def mixture(
    bench: Bench,
    *,
    router: str = "learned",
    in_rank: bool = False,
    balance: float = BALANCE,
    **options: Any,
) -> Built:
    """A mixture, by a plan that the package's own planner makes.

    Args:
        bench: What it is built on.
        router: learned; fixed, as it was drawn; or shared, one for all layers of a width.
        in_rank: Whether the plan's numbers are spent on the rank of one expert each.
        balance: Weight of the load-balancing loss.
        **options: Of the `alphalora:` block.
    """
    shape = {name: options.pop(name, value) for name, value in SHAPE.items()}
    plan = _plan(bench, options)
    counts, ranks = dict(plan.counts), {}
    if in_rank:
        ranks = {name: RANK * number for name, number in counts.items() if number}
        counts = {name: min(number, 1) for name, number in counts.items()}
    config = AlphaLoraConfig(
        r=RANK,
        lora_alpha=SCALE * RANK,
        num_experts=counts,
        rank_pattern=ranks,
        top_k=options.get("top_k", TOP_K),
        aux_loss_coef=balance,
        **shape,
    )
    torch.manual_seed(bench.seed)
    model = get_peft_model(bench.model, config)
    _set_routers(model, router)
    blocks = [round(number, 2) for number in plan.block_numbers.values()]
    return Built(model, {"rank": RANK, "blocks": blocks})


def _plan(bench: Bench, options: Mapping[str, Any]) -> Plan:
    """Plan with the mean number of experts a block, or as many parameters as that gives evenly."""
    options = dict(options)
    allocation = options.get("allocation")
    if isinstance(allocation, dict) and allocation.get("order") == "shuffled":
        options["allocation"] = {**allocation, "order_seed": bench.seed}
    request = _request(bench.directory, options)
    if request.granularity != "block":
        shapes = linear_shapes(bench)
        total = sum(Mixture().parameters(inside, out, EXPERTS, RANK) for out, inside in shapes)
        options |= {"experts_per_block": None, "total_parameters": total}
        request = _request(bench.directory, options)
    return Planner(partial(_from_rows, bench)).plan(request)[0]


def mixlora(bench: Bench) -> Built:
    """Axolotl's mixlora on the feed-forward layers, with its own loss.

    Raises:
        Unavailable: If axolotl is not installed.
    """
    options = Namespace(experts=EXPERTS, top_k=TOP_K, rank=RANK, dropout=0.0)
    torch.manual_seed(bench.seed)
    try:
        model, extra_loss = contestants.mixlora(bench.model, options)
    except contestants.Absent as error:
        raise Unavailable(str(error)) from error
    return Built(model, {"rank": RANK}, extra_loss)


def untrained(bench: Bench) -> Built:
    """The base model."""
    return Built(bench.model)


def _set_routers(model: Any, router: str) -> None:
    layers = [module for module in model.modules() if isinstance(module, AlphaLoraLayer)]
    routed = [layer for layer in layers if "default" in layer.alphalora_router]
    if router == "fixed":
        for layer in routed:
            layer.alphalora_router["default"].requires_grad_(False)
    elif router == "shared":
        first: dict[torch.Size, torch.nn.Parameter] = {}
        for layer in routed:
            own = layer.alphalora_router["default"]
            layer.alphalora_router["default"] = first.setdefault(own.shape, own)


def _request(directory: str, options: Mapping[str, Any]) -> PlanRequest:
    block = {
        "preset": "paper",
        "allocation": "uniform",
        "experts_per_block": EXPERTS,
        "min_experts": 1,
        "top_k": TOP_K,
        **options,
    }
    cfg = {
        "base_model": directory,
        "lora_r": RANK,
        "lora_target_linear": True,
        "alphalora": block,
    }
    return plan_request(cfg, read_block(cfg))


def _from_rows(bench: Bench, request: PlanRequest) -> Any:
    """Plan by what is measured on training rows, evenly picked from the cell's own."""
    model = bench.model
    if any(isinstance(module, RoundedLinear) for module in model.modules()):
        model = load(bench.directory, "cpu")[0]  # what is measured is measured in fp32
    settings, names = request.settings, list(request.targets.resolve(model))
    wanted = getattr(settings, "samples", SAMPLES)
    rows = bench.rows[:: max(1, math.ceil(len(bench.rows) / wanted))]
    samples = [row.sample() for row in rows]

    def measured(*_: Any) -> tuple[Any, Mapping[str, Any]]:
        found: Any
        if request.needs == "sensitivity":
            found = measure_sensitivity(model, names, samples)
        else:
            from axolotl_alphalora.activations import measure_explained_variance
            from axolotl_alphalora.allocation import components_needed

            components = components_needed(request, request.targets.resolve(model))
            found = measure_explained_variance(model, names, samples, components)
        tasks = dict(Counter(row.task for row in rows))
        digest = sha256(repr([row.ids for row in rows]).encode()).hexdigest()[:16]
        return found, {"tasks": tasks, "seed": 0, "digest": digest}

    return plan_from_model(request, model, None, measured)


_SHAPES: dict[str, dict[str, Any]] = {
    "uniform": {},
    "uniform-seg4": {"segments": 4},
    "uniform-seg8": {"segments": 8},
    "share-a": {"share_a": True},
    "router-rank16": {"router_rank": 16},
}
_LORAS: dict[str, dict[str, Any]] = {
    "lora-r8": {"rank": 8},
    "lora-r16": {"rank": 16},
    "lora-r40": {"rank": 40},
    "rslora-r40": {"rank": 40, "rslora": True},
    **{equal: {"equal_to": Mixture(**_SHAPES[shape])} for shape, equal in EQUALS},
}


def _planned(name: str) -> dict[str, Any]:
    """Options of a method that goes by a plan: PLAN[-opposite|-shuffled|-rank][-seg4]."""
    whole = name.removesuffix("-seg4")
    options: dict[str, Any] = {} if whole == name else {"segments": 4}
    plan, _, end = whole.rpartition("-")
    if end == "rank":
        return {"allocation": STRATEGIES[plan], "in_rank": True, **options}
    if end in ("opposite", "shuffled"):
        return {"allocation": {**STRATEGIES[plan], "order": end}, **options}
    return {"allocation": STRATEGIES[whole], **options}


_MIXTURES: dict[str, dict[str, Any]] = {
    **_SHAPES,
    "dense": {"top_k": EXPERTS},
    "fixed-router": {"router": "fixed"},
    "shared-router": {"router": "shared"},
    "unbalanced": {"balance": 0.0},
    **{name: _planned(name) for name in (*ALLOCATIONS, *CUT)},
    "uniform-2": {"experts_per_block": 2},
    "alphalora-hill-2": {**_planned("alphalora-hill"), "experts_per_block": 2},
}

METHODS: dict[str, Builder] = {
    UNTRAINED: untrained,
    **{name: partial(lora, **options) for name, options in _LORAS.items()},
    **{name: partial(mixture, **options) for name, options in _MIXTURES.items()},
    "mixlora": mixlora,
}
"""Name of a method to what builds it."""


def why_not(method: str) -> str | None:
    """Why a method cannot be built with what is installed, in words; None if it can."""
    if method == "mixlora":
        return None if find_spec("axolotl") else "axolotl is not installed"
    options = dict(_MIXTURES.get(method, {}))
    for own in ("router", "in_rank", "balance"):
        options.pop(own, None)
    for name in SHAPE:
        options.pop(name, None)
    try:
        _request("base", options).settings  # noqa: B018 (reads the options)
    except ValueError as error:
        said = " ".join(str(error).split())
        return said.partition("Value error, ")[2].partition(" [type=")[0] or said
    return None
