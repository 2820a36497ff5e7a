"""A directory of installed packages with strategies, which this process finds."""

import importlib
import sys
from pathlib import Path

import pytest

from axolotl_alphalora.allocation import registry, strategy

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
