"""Shapes of models, evidence made up, and plans of them."""

import itertools
from fractions import Fraction

from hypothesis import settings
from hypothesis import strategies as st

from axolotl_alphalora.allocation import (
    AllocationRequest,
    Budget,
    Evidence,
    Plan,
    build_plan,
)
from axolotl_alphalora.blocks import block_name, group_by_unit
from axolotl_alphalora.mixture import Mixture
from axolotl_alphalora.planning.config import MIXTURE

LLAMA_2_7B = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 4096),
    "self_attn.v_proj": (4096, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (11008, 4096),
    "mlp.up_proj": (11008, 4096),
    "mlp.down_proj": (4096, 11008),
}
TINY = {"self_attn.q_proj": (8, 8), "self_attn.v_proj": (4, 8), "mlp.up_proj": (24, 8)}


QUICK = settings(max_examples=40, deadline=None)


def model(blocks: int, linears=TINY, stack: str = "model.layers") -> dict[str, tuple[int, int]]:
    """The linear layers of a model."""
    return {f"{stack}.{i}.{name}": shape for i in range(blocks) for name, shape in linears.items()}


def wanted(strategy="uniform", *, options=None, budget=None, **others) -> AllocationRequest:
    """A request for a model that need not exist; parts of the mixture are given one by one."""
    mixture = {key: others.pop(key) for key in MIXTURE if key in others}
    return AllocationRequest(
        base_model="some/model",
        strategy=strategy,
        options=options or {},
        budget=Budget(**budget) if budget else None,
        mixture=Mixture(**mixture),
        **others,
    )


def plan(strategy="uniform", shapes=None, *, evidence=None, **others) -> Plan:
    """A plan for a model that need not exist."""
    return build_plan(wanted(strategy, **others), model(4) if shapes is None else shapes, evidence)


def planned() -> Plan:
    """Twelve experts over four blocks by their alphas."""
    shapes = model(4)
    evidence = with_alphas(shapes, [2.0, 3.0, 5.0, 4.0])
    return plan("alphalora", shapes, budget={"total_experts": 12}, evidence=evidence)


def experts(made: Plan) -> list[float]:
    """The units' numbers, in order."""
    return [unit.experts for unit in made.units]


def with_alphas(shapes, alphas, granularity="block") -> Evidence:
    """Alphas of the units, in order."""
    return Evidence(alphas=dict(zip(group_by_unit(shapes, granularity), alphas, strict=True)))


def with_sensitivities(shapes, *tasks) -> Evidence:
    """A list of sensitivities, one for each module in order, for each task."""
    return Evidence(
        sensitivities={
            f"task {i}": dict(zip(shapes, map(float, values), strict=True))
            for i, values in enumerate(tasks)
        }
    )


@st.composite
def sizes(draw):
    """A model of 1 to 6 blocks, of which one may have fewer modules than the others."""
    shapes = model(draw(st.integers(1, 6)))
    if draw(st.booleans()):
        del shapes["model.layers.0.self_attn.v_proj"]
    return shapes


@st.composite
def budgets(draw, shapes):
    """A budget of any kind that the least numbers fit into, with any bounds."""
    least = draw(st.integers(0, 2))
    bounds = {
        "min_experts": least,
        "max_experts": draw(st.none() | st.integers(least + 1, least + 8)),
    }
    kind = draw(st.sampled_from(["total_experts", "total_parameters", "memory_mib"]))
    # Parameters and memory must pay for one expert at least.
    lowest = spent_on(kind, shapes, dict.fromkeys(shapes, least or int(kind != "total_experts")))
    highest = spent_on(kind, shapes, dict.fromkeys(shapes, bounds["max_experts"] or least + 8))
    if kind == "memory_mib":
        spare = draw(st.floats(0, float(highest - lowest)))
        amount = float(lowest) + 2**-20 + spare
    else:
        amount = draw(st.integers(max(1, int(lowest)), int(highest)))
    return {kind: amount, **bounds}


def spent_on(kind, shapes, numbers, rank=8) -> Fraction:
    """What numbers of experts cost, in a budget's own unit, counted here and by itself.

    Memory is that of ``adamw_torch``: weights, gradients and two moments of 4 bytes each.
    """
    if kind == "total_experts":
        sizes = [block_name(name) for name in shapes]
        return sum((Fraction(numbers[n], sizes.count(block_name(n))) for n in shapes), Fraction())
    parameters = sum(
        Mixture().parameters(shape[1], shape[0], numbers[name], rank)
        for name, shape in shapes.items()
    )
    return Fraction(parameters if kind == "total_parameters" else parameters * 16, 1) / (
        2**20 if kind == "memory_mib" else 1
    )


def assert_well_spent(made: Plan, shapes, granularity, budget) -> None:
    """Bounds, order of the scores, never above the budget, and no unit can have one more."""
    budget = dict(budget)
    least, most = budget.pop("min_experts"), budget.pop("max_experts")
    ((kind, amount),) = budget.items()
    units = group_by_unit(shapes, granularity)
    numbers = {unit.name: unit.experts for unit in made.units}
    scores = {unit.name: unit.score or 0 for unit in made.units}
    assert list(numbers) == list(units)

    def allowed(counts):
        classes = [
            [counts[unit] for unit in units if scores[unit] == score]
            for score in sorted(set(scores.values()))
        ]
        return (
            all(count <= (most or count) for count in counts.values())
            and all(max(equal) - min(equal) <= 1 for equal in classes)
            and all(max(low) <= min(high) for low, high in itertools.pairwise(classes))
        )

    def cost(counts):
        modules = {name: counts[unit] for unit, names in units.items() for name in names}
        return spent_on(kind, shapes, modules)

    assert min(numbers.values()) >= least
    assert allowed(numbers)
    assert cost(numbers) <= amount
    assert made.budget["spent"] == float(cost(numbers))
    assert made.budget["asked"] == amount
    more = [{**numbers, unit: number + 1} for unit, number in numbers.items()]
    assert not [counts for counts in more if allowed(counts) and cost(counts) <= amount]
    if kind == "total_experts" and granularity == "block":
        assert sum(numbers.values()) == amount
        assert made.budget["unspent"] == 0
