"""Paths on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..files import expanded

__all__ = ["FilePath", "ModelName"]


class FilePath(click.Path):
    """A path, in which `~` is the home directory, as in a shell that did not read it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"path_type": Path, **options})

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Expand `~`, then check as click does."""
        return super().convert(expanded(value), param, ctx)


class ModelName(click.ParamType):
    """A directory, a file or a hub id, as text; `~` is the home directory."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Expand `~`."""
        return expanded(value)
