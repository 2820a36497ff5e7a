"""The table of cells, in the order in which they are run; which cells there are follows results.

A method's learning rate is read from its own curve: cells at the best rate become known only once
the curve is done.
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
GRID = (4e-4, 8e-4, 1.6e-3, 3.2e-3, 6.4e-3)
"""Learning rates of a curve, a factor 2 apart."""
BEYOND = 2
"""Values that a curve may get beyond an end of the grid, while its best one is the last there."""

SMALL, LARGE = 320, 1280
MAIN, SECOND = "smollm2", "gemma3"
PILOT = ("lora-r40", "uniform", "uniform-seg4")
VARIANCE_OF = "uniform"
SHAPES = (
    "lora-r40",
    "uniform",
    "uniform-seg4",
    "uniform-seg8",
    "lora-equal",
    "rslora-r40",
    "dense",
    "share-a",
    "router-rank16",
    "lora-r16",
    "lora-r8",
    "mixlora",
)
ALLOCATIONS = (
    "alphalora-hill",
    "alphalora-hill-opposite",
    "alphalora-hill-shuffled",
    "alphalora-hill-rank",
    "mola-2468",
    "mola-8642",
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
ROUTERS = ("uniform", "fixed-router", "shared-router")
SHORT = ("lora-r40", "uniform", "uniform-seg4", "alphalora-hill")
"""For a second base and for many rows."""


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
    """Learning rates of a method's curve; one more where the best so far is at an end."""
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
    """The rate with the least held-out loss of a method's curve; None until the curve is done."""
    known = losses(setting, method, done)
    rates = curve(setting, method, done)
    if any(rate not in known for rate in rates):
        return None
    return min(rates, key=known.__getitem__)


def table(done: Mapping[str, Line], device: str = "cpu") -> list[Cell]:
    """All cells that are known by now, in order, those that are done included.

    Args:
        done: Key of a cell to its line.
        device: Of `benchmarks.study.devices.DEVICES`.
    """
    return list(dict.fromkeys(_cells(done, device)))


def _cells(done: Mapping[str, Line], device: str) -> Iterator[Cell]:
    gsm8k, bbh = (Setting(data=data, device=device) for data in ("gsm8k", "bbh"))
    yield from _curves(gsm8k, PILOT, done)
    yield from _seeds(gsm8k, (VARIANCE_OF,), done)
    for setting in (gsm8k, bbh):
        for methods in (SHAPES, ALLOCATIONS, ROUTERS):
            yield from _curves(setting, methods, done)
            yield from _seeds(setting, methods, done)
    for setting in (
        Setting(base=SECOND, device=device),
        Setting(rows=LARGE, device=device),
        Setting(data="commonsense", device=device),
        Setting(data="skills", device=device),
    ):
        yield from _curves(setting, SHORT, done)
        yield from _seeds(setting, SHORT, done)


def _curves(setting: Setting, methods: Sequence[str], done: Mapping[str, Line]) -> Iterator[Cell]:
    yield setting.untrained()
    for method in methods:
        for rate in curve(setting, method, done):
            yield setting.cell(method, rate, 0)


def _seeds(setting: Setting, methods: Sequence[str], done: Mapping[str, Line]) -> Iterator[Cell]:
    best = {method: best_rate(setting, method, done) for method in methods}
    for seed in SEEDS:
        for method, rate in best.items():
            if rate is not None:
                yield setting.cell(method, rate, seed)
