"""The table of cells, in the order in which they are run; which cells there are follows results.

A method's learning rate is read from a curve, its own or that of its shape: cells at the best rate
become known only once the curve is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Line = Mapping[str, Any]
"""What is known of a cell that was run, see `benchmarks.study.run`."""

UNTRAINED = "untrained"
"""The method that leaves the base model as it is."""

SEEDS = range(5)
FRESH = range(5, 10)
"""Seeds of the pilot's methods that were named, and run, after their first five had been seen."""
GRID = (8e-4, 1.6e-3, 3.2e-3, 6.4e-3)
"""Learning rates of a curve, a factor 2 apart."""
BEYOND = 2
"""Values that a curve may get beyond an end of the grid, while its best one is the last there."""

SMALL, LARGE = 320, 1280
MAIN, SECOND = "smollm2", "gemma3"
TITLES = {MAIN: "SmolLM2-135M-Instruct", SECOND: "Gemma-3-270M"}
PILOT = ("lora-r40", "uniform", "uniform-seg4")
VARIANCE_OF = "uniform"
SHAPES = (
    "lora-r40",
    "uniform",
    "uniform-seg4",
    "dense",
    "uniform-seg8",
    "share-a",
    "router-rank16",
    "rslora-r40",
    "lora-equal-seg4",
    "lora-equal",
    "lora-equal-seg8",
    "lora-equal-share-a",
    "lora-equal-router-rank16",
    "lora-r16",
    "lora-r8",
    "mixlora",
)
MIXTURES = ("uniform-seg4", "uniform-seg8", "dense", "share-a", "router-rank16", "mixlora")
"""Those of them that have experts, beside `uniform`."""
ALLOCATIONS = (
    "alphalora-hill",
    "alphalora-hill-opposite",
    "alphalora-hill-shuffled",
    "alphalora-hill-rank",
    "mola-2468",
    "mola-8642",
    "mola-2468-shuffled",
    "mola-2468-rank",
    "sensitivity",
    "sensitivity-opposite",
    "sensitivity-shuffled",
    "sensitivity-rank",
    "eva",
    "eva-opposite",
    "eva-shuffled",
    "eva-rank",
    "alphalora-xmin_peak",
    "alphalora-ks",
)
PLANS = tuple(
    name for name in ALLOCATIONS if name.rpartition("-")[2] not in ("opposite", "shuffled", "rank")
)
CUT = (
    "alphalora-hill-seg4",
    "alphalora-hill-opposite-seg4",
    "alphalora-hill-shuffled-seg4",
    "mola-2468-seg4",
    "mola-8642-seg4",
    "sensitivity-seg4",
    "eva-seg4",
)
"""Plans whose experts are cut, for the question whether a plan helps at a finer shape."""
ROUTERS = ("fixed-router", "shared-router", "unbalanced")
"""A uniform mixture whose routers do not learn, are shared, or have no load-balancing loss."""
BUDGETS = ("uniform-2", "alphalora-hill-2")
"""With 2 experts a block in the mean."""
SHORT = (
    "lora-r40",
    "uniform",
    "uniform-seg4",
    "alphalora-hill",
    "alphalora-xmin_peak",
    "mola-2468",
)
"""For a second base, for many rows and for other data."""
SKILLS = (*SHORT, "router-rank16")
"""For the quickstart's data."""
GROUPS = (SHAPES, ALLOCATIONS, CUT, ROUTERS, BUDGETS, SKILLS)
NAMED = tuple(dict.fromkeys(method for group in GROUPS for method in group))
"""All methods, in the order of the table."""

LORA, MIXTURE, CUT_MIXTURE, PLAN = "lora-r40", "uniform", "uniform-seg4", "alphalora-hill"
"""The methods that stand for a plain LoRA, a mixture, one of more and smaller experts, a plan."""
PRIMARY = ((MIXTURE, LORA), (PLAN, MIXTURE))
"""The main comparisons; the p values of these two are corrected by themselves."""
AGAIN = ((MIXTURE, LORA), (CUT_MIXTURE, LORA), (CUT_MIXTURE, MIXTURE))
"""Comparisons that `FRESH` seeds answer once more, by themselves."""
CONTROLS = (
    *(
        (plan, f"{plan}-{end}")
        for plan in ("alphalora-hill", "sensitivity", "eva")
        for end in ("opposite", "shuffled", "rank")
    ),
    ("mola-2468", "mola-8642"),
    ("mola-2468", "mola-2468-shuffled"),
    ("mola-2468", "mola-2468-rank"),
    ("alphalora-hill-seg4", "alphalora-hill-opposite-seg4"),
    ("alphalora-hill-seg4", "alphalora-hill-shuffled-seg4"),
)
"""A plan, and what it must beat for its numbers to matter: `mola-8642` is the opposite of 2468."""
ESTIMATORS = (
    ("alphalora-hill", "alphalora-xmin_peak"),
    ("alphalora-ks", "alphalora-xmin_peak"),
)
"""Other estimators, and the package's default."""
FEWER = (("alphalora-hill-2", "uniform-2"), ("uniform-2", "lora-r16"))
"""A plan and a mixture of 2 experts a block: against even numbers, and a LoRA of as much rank."""
EQUALS = (
    ("uniform", "lora-equal"),
    ("uniform-seg4", "lora-equal-seg4"),
    ("uniform-seg8", "lora-equal-seg8"),
    ("share-a", "lora-equal-share-a"),
    ("router-rank16", "lora-equal-router-rank16"),
)
"""A mixture, and the plain LoRA that trains as many parameters, its routers included."""
ACTIVE = tuple(
    (name, "lora-r16")
    for name in ("uniform", "uniform-seg4", "uniform-seg8", "share-a", "router-rank16")
)
"""A mixture, and the plain LoRA of as much rank as a token uses of it."""
STRATEGIES: dict[str, dict[str, Any]] = {
    "alphalora-hill": {"strategy": "alphalora", "estimator": "hill"},
    "alphalora-xmin_peak": {"strategy": "alphalora", "estimator": "xmin_peak"},
    "alphalora-ks": {"strategy": "alphalora", "estimator": "ks"},
    "mola-2468": {"strategy": "mola", "shape": [2, 4, 6, 8]},
    "mola-8642": {"strategy": "mola", "shape": [8, 6, 4, 2]},
    "sensitivity": {
        "strategy": "sensitivity",
        "samples": 64,
        "beta": 0.5,
        "granularity": "module",
    },
    "eva": {"strategy": "eva", "samples": 64, "rho": 2, "granularity": "module"},
}
"""A plan's strategy and what makes it that plan."""
CHECKED = "alphalora-hill"
"""A method of `RATES` whose own curve is run all the same, to see whether that is fair."""
RATES = {
    **{
        f"{plan}-{end}": plan
        for plan in ("alphalora-hill", "sensitivity", "eva")
        for end in ("opposite", "shuffled")
    },
    "mola-2468-shuffled": "mola-2468",
    **dict.fromkeys((*PLANS, *ROUTERS), "uniform"),
    **dict.fromkeys(CUT, "uniform-seg4"),
    "alphalora-hill-2": "uniform-2",
}
"""A method that has no curve, and the one whose rate it takes: the experts are the same, and only
where they are differs, or how tokens are shared out."""


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        base: Of `benchmarks.study.bases.BASES`.
        data: The set that it trains on, of `benchmarks.study.rows.SETS`.
        rows: How many rows of it.
        method: Of `benchmarks.study.methods.METHODS`.
        rate: The largest learning rate.
        seed: Of the order of the rows and the start of the weights.
        device: Of `benchmarks.study.devices.DEVICES`.
    """

    base: str
    data: str
    rows: int
    method: str
    rate: float
    seed: int
    device: str = "cpu"

    @property
    def key(self) -> str:
        """What names the cell."""
        parts = (self.device, self.base, self.data, self.rows, self.method, f"{self.rate:g}")
        return "/".join(map(str, (*parts, self.seed)))

    @classmethod
    def of(cls, line: Line) -> Cell:
        """The cell of a line of results."""
        return cls(**{name: line[name] for name in cls.__dataclass_fields__})

    def as_dict(self) -> dict[str, Any]:
        """Its fields by name."""
        return asdict(self)


@dataclass(frozen=True)
class Setting:
    """What the methods of a comparison have in common."""

    base: str = MAIN
    data: str = "gsm8k"
    rows: int = SMALL
    device: str = "cpu"

    def cell(self, method: str, rate: float, seed: int) -> Cell:
        """A cell here."""
        return Cell(self.base, self.data, self.rows, method, rate, seed, self.device)

    @property
    def named(self) -> str:
        """What it is called on the page."""
        return f"{self.short}, {self.device}"

    @property
    def short(self) -> str:
        """The same without the device."""
        return f"{TITLES.get(self.base, self.base)}, {self.rows} rows of {self.data}"

    def untrained(self) -> Cell:
        """The cell that measures the base model as it is."""
        return self.cell(UNTRAINED, 0.0, 0)


def losses(setting: Setting, method: str, done: Mapping[str, Line]) -> dict[float, float]:
    """Learning rate to held-out loss at seed 0, for what was run of a method's curve, sorted."""
    return {
        rate: done[key]["held_out"]["loss"]
        for rate in sorted({line["rate"] for line in done.values()})
        if (key := setting.cell(method, rate, 0).key) in done
    }


def curve(setting: Setting, method: str, done: Mapping[str, Line]) -> list[float]:
    """Learning rates of a method's curve; one more where the best so far is at an end.

    Empty for a method of `RATES`.
    """
    if method in RATES:
        return []
    rates = list(GRID)
    known = losses(setting, method, done)
    while all(rate in known for rate in rates):
        best = min(rates, key=known.__getitem__)
        low, high = min(rates), max(rates)
        if best == low and low > GRID[0] / 2**BEYOND:
            rates.append(low / 2)
        elif best == high and high < GRID[-1] * 2**BEYOND:
            rates.append(high * 2)
        else:
            break
    return rates


def best_rate(setting: Setting, method: str, done: Mapping[str, Line]) -> float | None:
    """The rate with the least held-out loss of a method's curve; None until the curve is done.

    A method of `RATES` has that of another's curve.
    """
    if method in RATES:
        return best_rate(setting, RATES[method], done)
    known = losses(setting, method, done)
    rates = curve(setting, method, done)
    if any(rate not in known for rate in rates):
        return None
    return min(rates, key=known.__getitem__)


def further(device: str = "cpu") -> list[Setting]:
    """Another base, more rows and other data, on which a few methods are run."""
    return [
        Setting(base=SECOND, device=device),
        Setting(rows=LARGE, device=device),
        Setting(data="commonsense", device=device),
        Setting(data="skills", device=device),
    ]


def groups(setting: Setting) -> tuple[tuple[str, ...], ...]:
    """The groups of methods that are to be run in a setting."""
    if setting.base != MAIN or setting.rows != SMALL or setting.data not in ("gsm8k", "bbh"):
        return (SKILLS if setting.data == "skills" else SHORT,)
    wide = (SHAPES, ALLOCATIONS, ROUTERS, CUT)
    return (*wide, BUDGETS) if setting.data == "gsm8k" else wide


def table(done: Mapping[str, Line], device: str = "cpu") -> list[Cell]:
    """All cells that are known by now, in order, those that are done included.

    Args:
        done: Key of a cell to its line.
        device: Of `benchmarks.study.devices.DEVICES`.
    """
    return list(dict.fromkeys(_cells(done, device)))


def _cells(done: Mapping[str, Line], device: str) -> Iterator[Cell]:
    gsm8k, bbh = (Setting(data=data, device=device) for data in ("gsm8k", "bbh"))
    yield gsm8k.untrained()
    for method in PILOT:
        yield from _curve_cells(gsm8k, method, done)
    yield from _seeds(gsm8k, VARIANCE_OF, done)
    for seeds in (SEEDS, FRESH):
        for method in PILOT:
            yield from _seeds(gsm8k, method, done, seeds)
    for setting in (gsm8k, bbh, *further(device)):
        yield setting.untrained()
        for group in groups(setting):
            for method in group:
                yield from _curve_cells(setting, method, done)
                yield from _seeds(setting, method, done)
            if CHECKED in group and setting == gsm8k:
                yield from (gsm8k.cell(CHECKED, rate, 0) for rate in GRID)


def _curve_cells(setting: Setting, method: str, done: Mapping[str, Line]) -> Iterator[Cell]:
    for rate in curve(setting, method, done):
        yield setting.cell(method, rate, 0)


def _seeds(
    setting: Setting, method: str, done: Mapping[str, Line], seeds: Sequence[int] | None = None
) -> Iterator[Cell]:
    rate = best_rate(setting, method, done)
    if rate is not None:
        for seed in SEEDS if seeds is None else seeds:
            yield setting.cell(method, rate, seed)
