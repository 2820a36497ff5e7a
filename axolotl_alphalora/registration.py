"""Making PEFT know the method as soon as a process has both packages, whichever comes first."""

from __future__ import annotations

import sys
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
        import_module(_ADAPTER)
    elif not any(isinstance(finder, _PeftFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, cast(Any, _PeftFinder()))


class _PeftFinder:
    """Finds PEFT as the other finders do, and has it followed by the adapter."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _PEFT:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find and finder is not self else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = cast(Any, _FollowedLoader(spec.loader))
                return spec
        return None


class _FollowedLoader:
    """Loads a module as another loader does, then imports the adapter."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        # Where the boundary is what imports PEFT, it registers once it has the adapter's names.
        if _BOUNDARY not in sys.modules:
            import_module(_ADAPTER)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
