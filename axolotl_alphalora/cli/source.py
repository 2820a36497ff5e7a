"""What `alphalora plan` is given: an Axolotl YAML, or a model with the defaults."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..planning import PlanRequest
from ..plugin.request import plan_request, read_block

__all__ = ["read_source"]


def read_source(source: str | Path) -> tuple[PlanRequest, str | None]:
    """Read what is to be planned.

    Args:
        source: An Axolotl YAML, or a model's directory, hub id or ``.gguf`` file (every linear
            layer, the defaults of the block).

    Returns:
        The request, and the path of the saved plan that the YAML names, if it does.

    Raises:
        ValueError: If the YAML is none, or a key in it is wrong; names file and key.
    """
    cfg = _read(str(source))
    return plan_request(cfg), read_block(cfg).plan


def _read(source: str) -> dict[str, Any]:
    """The configuration in a YAML file, or one that stands for a bare model."""
    path = Path(source)
    if path.suffix not in (".yml", ".yaml"):
        return {"base_model": source, "lora_target_linear": True}
    import yaml

    try:
        cfg = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(cfg, dict):
        raise ValueError(f"{path} is no Axolotl configuration: it holds no keys.")
    if cfg.get("adapter") not in (None, "alphalora"):
        raise ValueError(f"{path}: `adapter` is {cfg['adapter']}, so there is nothing to plan.")
    _check_names(path, cfg)
    return cfg


def _check_names(path: Path, cfg: dict[str, Any]) -> None:
    """Refuse a misspelt adapter option; the host's own validation would take seconds to import."""
    from ..plugin.refusals import HONOURED, REFUSED

    known = {*HONOURED, *(row.key for row in REFUSED)}
    for key in cfg:
        if str(key).startswith(("lora_", "peft_")) and key not in known:
            near = get_close_matches(key, HONOURED, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise ValueError(f"{path}: `{key}` is not an option.{hint}")
