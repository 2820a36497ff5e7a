"""A budget is one limit and two bounds; costs in it are exact and fit what the adapter builds."""

import itertools
import math
from fractions import Fraction
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.allocation.budget import Budget, Costs
from axolotl_alphalora.allocation.optimizers import state_bytes
from axolotl_alphalora.allocation.spending import spend
from axolotl_alphalora.blocks import block_name
from axolotl_alphalora.mixture import Mixture
from helpers.allocating import plan

LINEARS = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (176, 64),
    "mlp.up_proj": (176, 64),
    "mlp.down_proj": (64, 176),
}
BLOCKS = 4
SHAPES = {
    f"model.layers.{block}.{name}": shape
    for block in range(BLOCKS)
    for name, shape in LINEARS.items()
}
RANK = 4
MIXTURES = [
    {"segments": 4},
    {"router_rank": 3},
    {"share_a": True},
    {"top_k": 0.25, "segments": 2, "router_rank": 3, "share_a": True},
]


def units(depth):
    """Units that share the first ``depth`` parts of their names: 3 blocks, 4 groups, 5 modules."""
    result = {}
    for name in SHAPES:
        result.setdefault(".".join(name.split(".")[:depth]), []).append(name)
    return result


def costs(depth=3, mode="experts", optimizer="adamw_torch", **budget):
    return Costs(SHAPES, units(depth), RANK, mode, Budget(**budget), optimizer)


def spread(depth, counts):
    return {name: counts[unit] for unit, names in units(depth).items() for name in names}


BUDGETS = [
    {"experts_per_block": 5.5},
    {"total_experts": 22},
    {"total_parameters": 150_000},
    {"memory_mib": 2.3},
]


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: next(iter(budget)))
@pytest.mark.parametrize("mode", ["experts", "rank"])
@pytest.mark.parametrize("depth", [3, 4, 5])
def test_units_add_up_to_the_total_of_their_modules(depth, mode, budget):
    prices = costs(depth, mode, **budget)
    counts = {unit: position % 4 for position, unit in enumerate(units(depth))}
    assert prices.total(spread(depth, counts)) == sum(
        prices.of(unit, count) for unit, count in counts.items()
    )
    assert all(prices.of(unit, 0) == 0 for unit in counts)


@pytest.mark.parametrize("mode", ["experts", "rank"])
def test_a_block_costs_its_number_whatever_its_size(mode):
    shapes = {**SHAPES, "model.layers.4.mlp.up_proj": (999, 64), "model.layers.5.a.b": (1, 1)}
    shapes["model.layers.5.a.c"] = (3, 3)
    by_block = {}
    for name in shapes:
        by_block.setdefault(block_name(name), []).append(name)
    prices = Costs(shapes, by_block, RANK, mode, Budget(total_experts=30))
    assert [prices.amount(prices.of(block, 3)) for block in by_block] == [3] * 6
    assert prices.limit == 30 * 14
    single = Costs(shapes, {n: [n] for n in shapes}, RANK, mode, Budget(total_experts=30))
    assert Fraction(single.of("model.layers.0.mlp.up_proj", 5), single.limit) == Fraction(5, 7 * 30)


def test_experts_per_block_and_total_experts_are_one_currency():
    mean, total = costs(4, experts_per_block=5.4), costs(4, total_experts=22)
    assert mean.limit == total.limit == 22 * 7
    assert mean.asked == total.asked == 22
    assert isinstance(mean.amount(mean.limit), int)
    assert mean.amount(mean.of("model.layers.0.mlp", 1)) == pytest.approx(3 / 7)


def test_without_a_budget_costs_are_experts():
    prices = Costs(SHAPES, units(3), RANK, "experts", Budget())
    assert (prices.limit, prices.asked) == (None, None)
    assert prices.amount(prices.total(dict.fromkeys(SHAPES, 2))) == 2 * BLOCKS
    prices.check_minimum(1)


def adapted(shape, experts, rank, **mixture):
    """The trainable parameters of a layer of that shape, from the adapter itself."""
    layer = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False))
    config = AlphaLoraConfig(r=rank, target_modules=["0"], num_experts=experts, **mixture)
    model = get_peft_model(layer, config)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("experts", [1, 2, 5])
@pytest.mark.parametrize("shape", sorted(set(LINEARS.values())))
@pytest.mark.parametrize("mixture", [{}, *MIXTURES], ids=str)
def test_the_tensors_are_those_of_the_layer(shape, experts, mixture):
    trained = [tuple(parameter.shape) for parameter in adapted(shape, experts, RANK, **mixture)]
    out_features, in_features = shape
    tensors = Mixture(**mixture).tensors(in_features, out_features, experts, RANK)
    assert sorted(trained) == sorted(tensors.values())
    assert sum(map(math.prod, trained)) == Mixture(**mixture).parameters(
        in_features, out_features, experts, RANK
    )


def test_parameters_are_those_of_the_layers():
    """Trainable ones of the PEFT layers, routers included; with rank, one wide expert."""
    counts = {name: 1 + position % 3 for position, name in enumerate(SHAPES)}
    for mode in ("experts", "rank"):
        trained = sum(
            parameter.numel()
            for name, count in counts.items()
            for parameter in adapted(
                SHAPES[name], *((count, RANK) if mode == "experts" else (1, count * RANK))
            )
        )
        prices = costs(5, mode, total_parameters=10**6)
        assert prices.amount(prices.total(counts)) == trained
        assert prices.limit == prices.asked == 10**6


@pytest.mark.parametrize("mode", ["experts", "rank"])
def test_memory_is_that_of_weights_gradients_and_optimizer(mode):
    """One step of AdamW over all the adapter's parameters; step counters left out."""
    counts = {name: 1 + position % 3 for position, name in enumerate(SHAPES)}
    parameters = [
        parameter
        for name, count in counts.items()
        for parameter in adapted(
            SHAPES[name], *((count, RANK) if mode == "experts" else (1, count * RANK))
        )
    ]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = [t for entry in optimizer.state.values() for t in entry.values() if t.ndim]
    gradients = [parameter.grad for parameter in parameters]
    held = sum(t.nbytes for t in [*parameters, *gradients, *state])
    prices = costs(5, mode, memory_mib=1.5)
    assert prices.total(counts) == held
    assert prices.amount(prices.total(counts)) == held / 2**20
    assert (prices.limit, prices.asked) == (3 * 2**19, 1.5)


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_8bit", "adamw_torch_8bit"])
@pytest.mark.parametrize("mode", ["experts", "rank"])
def test_more_experts_never_cost_less(optimizer, mode):
    """Where a tensor grows past 4096 elements its 8-bit state is smaller than its 32-bit one."""
    prices = costs(5, mode, optimizer, memory_mib=1)
    falls = 0
    for name in LINEARS:
        module = f"model.layers.0.{name}"
        for number in range(1, 40):
            lower, higher = prices.of(module, number - 1), prices.of(module, number)
            assert higher >= lower
            exact = prices.total({module: number})
            assert exact <= higher
            falls += exact < prices.total({module: number - 1})
    assert bool(falls) == (optimizer != "adamw_torch")


@given(
    st.sampled_from([3, 4, 5]),
    st.sampled_from(["experts", "rank"]),
    st.sampled_from(BUDGETS),
    st.lists(st.floats(min_value=0.5, max_value=5.0), min_size=28, max_size=28),
)
def test_what_is_spent_stays_within_what_was_asked(depth, mode, budget, numbers):
    prices = costs(depth, mode, **budget)
    names = list(units(depth))
    counts = spend(
        numbers[: len(names)], [partial(prices.of, name) for name in names], prices.limit
    )
    spent = prices.amount(prices.total(spread(depth, dict(zip(names, counts, strict=True)))))
    assert spent <= prices.asked
    if depth == 3 and prices.amount(1) != 1:
        cheapest = min(prices.of(n, c + 1) - prices.of(n, c) for n in names for c in counts)
        assert prices.asked - spent < prices.amount(cheapest) * 2


@pytest.mark.parametrize("budget", [{"experts_per_block": 1}, {"total_experts": 4}])
def test_the_least_is_affordable_at_the_limit(budget):
    costs(5, **budget).check_minimum(1)


@pytest.mark.parametrize(
    ("budget", "minimum", "message"),
    [
        (
            {"experts_per_block": 2.5},
            3,
            "experts_per_block is 2.5, 10 in all, but .* min_experts 3 allows is 12: "
            "raise experts_per_block, or lower min_experts",
        ),
        (
            {"total_parameters": 1000},
            1,
            r"total_parameters is 1000, .* allows is \d\d,\d{3}: .*, or lower the rank or min",
        ),
        ({"memory_mib": 0.01}, 1, r"memory_mib is 0.01, .* min_experts 1 allows is 0\.\d{3}:"),
    ],
)
def test_a_limit_below_the_least_is_told_in_the_budgets_unit(budget, minimum, message):
    with pytest.raises(ValueError, match=message):
        costs(**budget).check_minimum(minimum)


def test_the_router_counts_from_the_second_expert_on():
    prices = costs(5, total_parameters=10**6)
    name = "model.layers.0.mlp.up_proj"
    steps = [b - a for a, b in itertools.pairwise(prices.of(name, n) for n in range(4))]
    assert steps == [RANK * 240, RANK * 240 + 2 * 64, RANK * 240 + 64]


def test_memory_needs_a_known_optimizer():
    with pytest.raises(ValueError, match="memory_mib needs the optimizer's name"):
        costs(optimizer=None, memory_mib=5)
    with pytest.raises(ValueError, match="optimizer 'galore_adamw' is not known"):
        costs(optimizer="galore_adamw", memory_mib=5)
    assert costs(optimizer="galore_adamw", total_experts=5).limit == 35


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": ["m.0.x"]}, "module 'm.1.x' is in no unit"),
        ({"a": ["m.0.x", "m.1.x"], "b": ["m.0.x"]}, "module 'm.0.x' is in more than one"),
        ({"a": ["m.0.x", "m.2.x"]}, "module 'm.2.x' of unit 'a' has no shape"),
        ({"a": ["m.0.x", "m.1.x"], "b": []}, "unit 'b' has no modules"),
    ],
)
def test_units_hold_every_module_once(content, message):
    shapes = {"m.0.x": (2, 2), "m.1.x": (2, 2)}
    with pytest.raises(ValueError, match=message):
        Costs(shapes, content, RANK, "experts", Budget(total_experts=2))


def test_a_mean_that_rounds_to_nothing_is_refused():
    with pytest.raises(ValueError, match="experts_per_block is 0.1: over 4 blocks"):
        costs(experts_per_block=0.1)


def test_state_bytes_is_what_memory_goes_by():
    prices = costs(5, optimizer="sgd", memory_mib=5)
    name = "model.layers.0.mlp.up_proj"
    assert prices.of(name, 1) == 8 * RANK * 240
    assert state_bytes("sgd", (RANK, 64)) == 0


@pytest.mark.parametrize("shape", MIXTURES, ids=str)
@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_8bit", "adafactor"])
def test_budgets_count_the_tensors_of_the_mixture(shape, optimizer):
    counts = {name: position % 4 for position, name in enumerate(SHAPES)}
    sizes = [
        size
        for name, count in counts.items()
        for size in Mixture(**shape).tensors(*SHAPES[name][::-1], count, RANK).values()
    ]
    budgets = {
        "total_parameters": sum(rows * columns for rows, columns in sizes),
        "memory_mib": sum(8 * math.prod(size) + state_bytes(optimizer, size) for size in sizes),
    }
    for kind, spent in budgets.items():
        budget = Budget(**{kind: 10**6})
        prices = Costs(SHAPES, units(5), RANK, "experts", budget, optimizer, Mixture(**shape))
        usual = costs(5, "experts", optimizer, **{kind: 10**6})
        assert prices.total(counts) == spent != usual.total(counts)


@pytest.mark.parametrize("kind", ["total_parameters", "memory_mib"])
def test_a_budget_buys_more_experts_that_share_an_a(kind):
    amount = {"total_parameters": 150_000, "memory_mib": 2.3}[kind]
    made = {
        shared: plan(
            "uniform",
            SHAPES,
            budget={kind: amount},
            optimizer="adamw_torch",
            rank=RANK,
            share_a=shared,
        )
        for shared in (False, True)
    }
    assert made[True].module_experts > made[False].module_experts
    for each in made.values():
        spent = each.trainable_parameters
        assert each.budget["spent"] == (spent if kind == "total_parameters" else spent / 2**16)
        assert each.budget["spent"] <= amount
