"""Doing something as soon as a process has another package: PEFT learns of the method by it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, cast

_PEFT, _ADAPTER, _BOUNDARY = "peft", f"{__package__}.adapter", f"{__package__}.hosts.peft"


def register() -> None:
    """Register the method with PEFT now if it is imported, else when it will be.

    PEFT has no entry points for methods from outside, and importing it takes seconds, which the
    command line must not.
    """
    if _PEFT in sys.modules:
        _import_adapter()
    else:
        when_imported(_PEFT, _import_unless_under_way)


def _import_unless_under_way() -> None:
    # Where the boundary is what imports PEFT, it registers once it has the adapter's names.
    if _BOUNDARY not in sys.modules:
        _import_adapter()


def _import_adapter() -> None:
    try:
        import_module(_ADAPTER)
    except ImportError as error:  # others' import of PEFT, as vLLM's, must not fail by it
        warnings.warn(
            f"AlphaLoRA does not work with PEFT {getattr(sys.modules[_PEFT], '__version__', '?')}, "
            f"so its adapters cannot be opened here: install peft>=0.21,<0.22 ({error})",
            stacklevel=2,
        )


def when_imported(name: str, then: Callable[[], object]) -> None:
    """Do something once a module has been imported: now if it is, else right after it will be.

    Args:
        name: The module's full name.
        then: What to do; asked for several times before the module is there, it is done once.
    """
    if name in sys.modules:
        then()
    elif not any(isinstance(finder, _Finder) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, cast(Any, _Finder(name, then)))


class _Finder:
    """Finds one module as the other finders do, and has something done after it."""

    def __init__(self, name: str, then: Callable[[], object]) -> None:
        self.name, self._then = name, then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find and finder is not self else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = cast(Any, _FollowedLoader(spec.loader, self._then))
                return spec
        return None


class _FollowedLoader:
    """Loads a module as another loader does, then does something."""

    def __init__(self, loader: Any, then: Callable[[], object]) -> None:
        self._loader, self._then = loader, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._then()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
