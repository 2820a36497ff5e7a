"""Two plans, and a directory of installed packages with strategies, which this process finds."""

import importlib
import sys
from pathlib import Path

import pytest

from axolotl_alphalora.allocation import ModulePlan, Plan, UnitPlan, registry, strategy
from axolotl_alphalora.settings import MatrixQuality
from helpers.allocating import model
from helpers.allocating import plan as planned

_REGISTERED = """
from axolotl_alphalora.allocation import Options, Problem, Strategy, hookimpl

@hookimpl
def register_strategy():
    return Strategy({name!r}, "goes by something")

"""


class Site:
    """Packages as they lie in a directory after their installation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def install(self, package: str, source: str, *entries: str, name: str | None = None) -> None:
        """Add version 1.0 of a package that is one module.

        Args:
            package: The package's name.
            source: The module's source.
            entries: Names of entry points; the package's if there are none.
            name: Name of a strategy that the source is to register before anything else.
        """
        module = package.replace("-", "_")
        registered = "" if name is None else _REGISTERED.format(name=name)
        (self.folder / f"{module}.py").write_text(registered + source)
        info = self.folder / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"[{strategy.GROUP}]", *(f"{entry} = {module}" for entry in entries or [package])]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        self.modules.append(module)
        importlib.invalidate_caches()
        registry.cache_clear()


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    site = Site(folder)
    yield site
    for module in site.modules:
        sys.modules.pop(module, None)
    registry.cache_clear()


def module(name, experts, measured, sensitivity=None):
    shape = (64, 32)
    return ModulePlan(
        name=name,
        shape=shape,
        experts=experts,
        rank=8,
        sensitivity=sensitivity,
        quality=MatrixQuality(name, shape, *measured),
    )


@pytest.fixture
def plan():
    return Plan(
        base_model="some/model",
        weights={"source": "safetensors", "dtype": "bfloat16", "revision": None},
        strategy={
            "name": "alphalora",
            "package": "axolotl-alphalora 0.1.0",
            "options": {"estimator": "xmin_peak", "beta": 2.5, "list": [1, {"a": None}]},
        },
        sample={"tasks": {"sums": 3, "rhymes": 2}, "seed": 0, "digest": "00ff"},
        budget={
            "kind": "total_parameters",
            "asked": 5000,
            "spent": 3168,
            "unspent": 1832,
            "min_experts": 0,
            "max_experts": None,
            "optimizer": None,
        },
        top_k=2,
        rank=8,
        units=(
            UnitPlan(name="layers.0", score=2.1, experts=1, interval=None),
            UnitPlan(name="layers.1", score=None, experts=1.5, interval=(2.0, 2.5)),
        ),
        modules=(
            module("layers.0.q", 1, (2.1, 0.25, 0.5, 9, 32, 32), {"sums": 0.5, "rhymes": 2.0}),
            module("layers.1.q", 3, (2.5, 0.5, 0.0625, 17, 32, 31, "why")),
            ModulePlan(name="layers.1.k", shape=(16, 32), experts=0, rank=8),
        ),
    )


@pytest.fixture
def ranks():
    """A plan whose numbers are spent on rank."""
    return planned("mola", model(2), options={"shape": "13"}, rank=4, spend="rank")
