"""Paths on the command line, and the YAML files that some of them name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..files import expanded

__all__ = ["YAML_SUFFIXES", "FilePath", "ModelName", "read_yaml"]

YAML_SUFFIXES = (".yml", ".yaml")


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


def read_yaml(path: Path) -> dict[str, Any]:
    """Read an Axolotl configuration as it is written.

    Args:
        path: The file.

    Raises:
        ValueError: If it cannot be read, is not UTF-8 or not YAML, or holds no keys; names the
            file and says what is wrong.
    """
    import yaml

    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({_encoding(path)}): save it again with the encoding UTF-8."
        ) from error
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        tab = getattr(error, "problem", None) and r"'\t'" in str(error.problem)
        hint = " Indent with spaces: YAML takes no tabs." if tab else ""
        raise ValueError(f"{path} is not YAML: {error}{hint}") from error
    if isinstance(found, dict):
        return found
    what = "is empty" if found is None else f"holds a {type(found).__name__} and no keys"
    raise ValueError(
        f"{path} is no Axolotl configuration: it {what}. It begins like this: `base_model: NAME`."
    )


def _encoding(path: Path) -> str:
    start = path.read_bytes()[:4]
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "it is UTF-16"
    zeros = start.count(0)
    return "it seems to be UTF-16 or UTF-32" if zeros else "it is in another encoding, or no text"
