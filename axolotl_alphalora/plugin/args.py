"""The place of the `alphalora:` block in Axolotl's schema, and what it needs of the other keys.

Axolotl mixes `AlphaLoraArgs` into its own schema (`axolotl/integrations/config.py`), so every
validator here sees the whole configuration and acts for `adapter: alphalora` only. The validated
configuration can be validated again (Ray workers do that), with defaults written out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, model_validator

from axolotl_alphalora.plugin import quantization, refusals
from axolotl_alphalora.plugin.block import ADAPTER, AlphaLoraConfigBlock
from axolotl_alphalora.plugin.learning_rates import ratios
from axolotl_alphalora.plugin.prequantised import check_checkpoint, checkpoint_quantization
from axolotl_alphalora.plugin.verb import check_verb, running_verb, trained_adapter

_OUTPUT_DIR = "./model-out"  # the host's default


class AlphaLoraArgs(BaseModel):
    """What the plugin adds to Axolotl's schema."""

    alphalora: AlphaLoraConfigBlock | None = Field(
        default=None,
        description="Options of `adapter: alphalora`. Without the block, its defaults apply.",
    )
    alphalora_given: list[str] | None = Field(
        default=None,
        description="Set by the plugin: the keys of the `alphalora:` block that the YAML holds.",
    )
    lora_exclude_modules: str | list[str] | None = Field(
        default=None,
        description="Linear layers left out of the targets: names, or one regular expression.",
    )

    if TYPE_CHECKING:
        adapter: str | None
        overrides_of_model_kwargs: dict[str, Any] | None

    @model_validator(mode="before")
    @classmethod
    def _check_alphalora_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        if data.get("adapter") == ADAPTER:
            _check_unread_keys(data, cls.model_fields)
            verb = running_verb()
            check_verb(verb)
            if verb in ("evaluate", "inference"):
                if not data.get("lora_model_dir"):
                    data = _with_trained_adapter(data, verb)
                data = _without_start(data)
            given = data.get(ADAPTER)
            if data.get("alphalora_given") is None and isinstance(given, Mapping | None):
                # Validated configurations hold all defaults and may be validated again.
                keys = [key for key, value in (given or {}).items() if value is not None]
                data = {**data, "alphalora_given": keys}
            if given is None:
                return {**data, ADAPTER: {}}
        elif data.get(ADAPTER) is not None:
            raise ValueError(
                f"The `alphalora:` block needs `adapter: alphalora`, got `adapter: "
                f"{data.get('adapter') or 'null'}`. Set the adapter or remove the block."
            )
        return data

    @model_validator(mode="after")
    def _check_alphalora_run(self) -> AlphaLoraArgs:
        if self.adapter != ADAPTER:
            return self
        cfg = self.model_dump(exclude_none=True, warnings=False)
        refusals.check(cfg)
        _check_lora_options(cfg)
        _check_planning(cfg)
        _check_learning_rates(cfg)
        quantised = checkpoint_quantization(cfg)
        if quantised is not None:
            check_checkpoint(cfg, quantised)
        self.overrides_of_model_kwargs = quantization.request(
            self.overrides_of_model_kwargs, cfg, quantised=quantised is not None
        )
        return self


def _with_trained_adapter(data: Mapping[str, Any], verb: str) -> Mapping[str, Any]:
    """Give a verb that was given no adapter that of the run, if there is one."""
    from axolotl.utils.logging import get_logger

    found = trained_adapter(data.get("output_dir") or _OUTPUT_DIR)
    if found is None:
        if verb == "inference":  # an evaluation warns later, beside its result
            from axolotl_alphalora.plugin.trainer import warn_fresh_adapter

            warn_fresh_adapter("axolotl inference")
        return data
    get_logger(__name__).info(
        "AlphaLoRA: axolotl %s runs the adapter in %s, since no `lora_model_dir` was given.",
        verb,
        found,
    )
    return {**data, "lora_model_dir": str(found)}


def _without_start(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Drop what the training began with, for verbs that run the adapter which came of it."""
    block = data.get(ADAPTER)
    if not data.get("lora_model_dir") or not isinstance(block, Mapping):
        return data
    kept = {key: value for key, value in block.items() if not str(key).startswith("init_")}
    return {**data, ADAPTER: kept}


def _check_unread_keys(data: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Refuses misspelt adapter options, which Axolotl would drop without a word."""
    options = AlphaLoraConfigBlock.model_fields
    adapter_options = [
        name for name in fields if name.startswith(("lora_", "peft_", "loraplus_", ADAPTER))
    ]
    errors = []
    for key, value in data.items():
        if key in fields or value is None or not isinstance(key, str):
            continue
        if key in options:
            errors.append(f"`{key}` belongs into the `alphalora:` block: `alphalora.{key}`.")
        elif key.startswith(("lora_", "peft_", "loraplus_")) or _resembles(key, ADAPTER):
            close = get_close_matches(key, adapter_options, n=1)
            advice = f"Did you mean `{close[0]}`?" if close else "Remove it."
            errors.append(f"`{key}` is not an option of Axolotl or of a loaded plugin. {advice}")
    if errors:
        raise ValueError(" ".join(errors))


def _resembles(key: str, name: str) -> bool:
    return bool(get_close_matches(key.lower(), [name], cutoff=0.8))


def _check_lora_options(cfg: Mapping[str, Any]) -> None:
    if cfg.get("lora_model_dir"):
        if cfg[ADAPTER].get("init_from"):
            raise ValueError(
                "`alphalora.init_from` starts a new adapter from a plain LoRA, and "
                "`lora_model_dir` continues one that is there. Remove one of them."
            )
        return
    missing = [key for key in ("lora_r", "lora_alpha") if not cfg.get(key)]
    if missing:
        names = " and ".join(f"`{key}`" for key in missing)
        raise ValueError(
            f"`adapter: alphalora` needs {names}: the rank and the scaling of one expert, for "
            "example `lora_r: 8` and `lora_alpha: 16`."
        )
    if not (cfg.get("lora_target_modules") or cfg.get("lora_target_linear")):
        raise ValueError(
            "`adapter: alphalora` needs `lora_target_linear: true`, or `lora_target_modules` with "
            "the names of the linear layers that get experts."
        )
    for key, valid in (("lora_r", cfg["lora_r"] >= 1), ("lora_dropout", _is_rate(cfg))):
        if not valid:
            limits = "at least 1" if key == "lora_r" else "at least 0 and below 1"
            raise ValueError(f"`{key}: {cfg[key]}` must be {limits}.")


def _check_planning(cfg: Mapping[str, Any]) -> None:
    """Check what a new plan needs of the rest of the configuration."""
    from axolotl_alphalora.allocation.optimizers import state_bytes
    from axolotl_alphalora.plugin.request import plan_request

    block = cfg.get(ADAPTER) or {}
    if cfg.get("lora_model_dir") or block.get("plan"):
        return
    request = plan_request(cfg)
    if request.optimizer is not None:
        state_bytes(request.optimizer, (1, 1))
    if request.needs == "sensitivity":
        from axolotl_alphalora.plugin.samples import check_data

        check_data(cfg)
        key = _sharded_by(cfg)
        if key is not None:
            raise ValueError(
                f"`alphalora.allocation: {request.strategy}` goes by gradients of whole weights, "
                f"which `{key}` shards. Plan first, in one process: `alphalora plan config.yml "
                f"--output plan.json` without `{key}`, then set `alphalora.plan: plan.json`."
            )


def _sharded_by(cfg: Mapping[str, Any]) -> str | None:
    """The key that has the base model's weights sharded: FSDP, or DeepSpeed ZeRO-3."""
    for key in ("fsdp_config", "fsdp"):
        if cfg.get(key):
            return key
    stage = (_deepspeed_settings(cfg).get("zero_optimization") or {}).get("stage")
    if stage == 3 or os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        return "deepspeed"
    return None


def _check_learning_rates(cfg: Mapping[str, Any]) -> None:
    """Refuse learning rates of our own where DeepSpeed makes the optimizer."""
    factors = ratios(cfg.get("loraplus_lr_ratio"), cfg[ADAPTER]["router_lr_ratio"])
    if factors and "optimizer" in _deepspeed_settings(cfg):
        raise ValueError(
            "`loraplus_lr_ratio` and `alphalora.router_lr_ratio` do nothing where the DeepSpeed "
            "configuration names the optimizer. Remove its `optimizer` block, and set "
            "`optimizer` in the YAML."
        )


def _deepspeed_settings(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    settings = cfg.get("deepspeed")
    if isinstance(settings, str) and Path(settings).is_file():
        settings = json.loads(Path(settings).read_text(encoding="utf-8"))
    return settings if isinstance(settings, Mapping) else {}


def _is_rate(cfg: Mapping[str, Any]) -> bool:
    return bool(0 <= cfg.get("lora_dropout", 0) < 1)
