"""The place of the `alphalora:` block in Axolotl's schema, and what it needs of the other keys.

Axolotl mixes `AlphaLoraArgs` into its own schema (`axolotl/integrations/config.py`), so every
validator here sees the whole configuration and acts for `adapter: alphalora` only. The validated
configuration can be validated again (Ray workers do that), with defaults written out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, Field, ModelWrapValidatorHandler, model_validator

from ..allocation import SAMPLED
from ..hosts.constants import OUTPUT_DIR
from ..planning import ADAPTER, AlphaLoraConfigBlock, plan_request
from ..planning.keys import as_written, check_adapter, check_spelling, lacking
from . import host, quantization, refusals
from .checkpoints import trained_adapter
from .host import running_verb
from .options import where_trl_wraps
from .quantised_base import check_checkpoint
from .training import lr_ratios
from .verbs import RUNS_ADAPTER, check_verb, warn_fresh_adapter

FILLED_IN = ("lora_dropout",)
"""Keys of the host whose defaults in a validated configuration look like what the YAML holds."""


class AlphaLoraArgs(BaseModel):
    """What the plugin adds to Axolotl's schema."""

    alphalora: AlphaLoraConfigBlock | None = Field(
        default=None,
        description="Options of `adapter: alphalora`. Without the block, its defaults apply.",
    )
    alphalora_given: list[str] | None = Field(
        default=None,
        description="Set by the plugin: the keys of the `alphalora:` block that the YAML holds, "
        "and those of the host that it would fill in.",
    )
    lora_exclude_modules: str | list[str] | None = Field(
        default=None,
        description="Linear layers left out of the targets: names, or one regular expression.",
    )

    if TYPE_CHECKING:
        adapter: str | None
        overrides_of_model_kwargs: dict[str, Any] | None

    @model_validator(mode="wrap")
    @classmethod
    def _read_yaml(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Read the YAML as it is: the host's own validators fill in defaults before ours run."""
        if not isinstance(data, Mapping):
            return handler(data)
        if data.get("adapter") == ADAPTER:
            data = as_written(data)
            _check_base(data.get("base_model"))
            if data.get("alphalora_given") is None:
                # Validated configurations hold all defaults and may be validated again.
                data["alphalora_given"] = _given(data)
        elif not _is_known(data.get("adapter")):
            check_adapter(data.get("adapter"))
        return handler(data)

    @model_validator(mode="before")
    @classmethod
    def _check_alphalora_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        if data.get("adapter") == ADAPTER:
            check_spelling(data, cls.model_fields)
            verb = running_verb()
            check_verb(verb)
            if verb in RUNS_ADAPTER and not data.get("lora_model_dir"):
                data = _with_trained_adapter(data, verb)
            if data.get("lora_model_dir"):
                start = ("init_from", "init_split") if verb in RUNS_ADAPTER else ()
                data = _without(data, "preset", *start)
            if data.get(ADAPTER) is None:
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
        if self.alphalora is not None:
            _check_planning(cfg, self.alphalora)
        _check_learning_rates(cfg)
        _check_adapter_to_run(cfg)
        quantised = quantization.checkpoint_quantization(cfg)
        if quantised is not None:
            check_checkpoint(cfg, quantised)
        self.overrides_of_model_kwargs = quantization.request(
            self.overrides_of_model_kwargs, cfg, quantised=quantised is not None
        )
        return self


def _check_base(base: str | None) -> None:
    """Refuse what is no base model: the host would load an adapter's base, and hide it inside."""
    if base is None or not Path(base).exists():
        return
    from ..spectral import check_model_files

    try:
        check_model_files(base)
    except ValueError as error:
        raise ValueError(f"`base_model: {base}`: {error}") from error


def _given(data: Mapping[str, Any]) -> list[str]:
    block = data.get(ADAPTER)
    keys = block if isinstance(block, Mapping) else {}
    found = [str(key) for key, value in keys.items() if value is not None]
    return found + [key for key in FILLED_IN if data.get(key) is not None]


def _is_known(adapter: Any) -> bool:
    """Whether the host or a plugin has an adapter of that name."""
    from .host import PluginManager

    return isinstance(adapter, str) and PluginManager.get_instance().supports_adapter(adapter)


def _with_trained_adapter(data: Mapping[str, Any], verb: str) -> Mapping[str, Any]:
    """Give a verb that was given no adapter that of the run, if there is one."""
    found = trained_adapter(data.get("output_dir") or OUTPUT_DIR)
    if found is None:
        if verb == "inference":  # an evaluation warns later, beside its result
            warn_fresh_adapter("axolotl inference")
        return data
    if verb == "evaluate" and where_trl_wraps(found, data):
        raise ValueError(
            f"`axolotl evaluate` with `rl: {data['rl']}` would not evaluate the adapter in "
            f"{found}, but a fresh one, which Axolotl lets TRL add. The run's log has its "
            "evaluations (`eval_loss`), and `axolotl inference` runs the adapter."
        )
    host.get_logger(__name__).info(
        "AlphaLoRA: axolotl %s runs the adapter in %s, since no `lora_model_dir` was given.",
        verb,
        found,
    )
    return {**data, "lora_model_dir": str(found)}


def _without(data: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Drop keys of the block that say how an adapter begins, where there is one already."""
    block = data.get(ADAPTER)
    if not isinstance(block, Mapping):
        return data
    kept = {key: value for key, value in block.items() if key not in keys}
    return {**data, ADAPTER: kept}


def _check_lora_options(cfg: Mapping[str, Any]) -> None:
    if cfg.get("lora_model_dir"):
        if cfg[ADAPTER].get("init_from"):
            raise ValueError(
                "`alphalora.init_from` starts a new adapter from a plain LoRA, and "
                "`lora_model_dir` continues one that is there. Remove one of them."
            )
        return
    if cfg.get("resume_from_checkpoint"):
        return
    missing = lacking(cfg)
    if missing is not None:
        raise ValueError(missing)
    if not (cfg.get("lora_target_modules") or cfg.get("lora_target_linear")):
        raise ValueError(
            "`adapter: alphalora` needs `lora_target_linear: true`, or `lora_target_modules` with "
            "the names of the linear layers that get experts."
        )


def _check_adapter_to_run(cfg: Mapping[str, Any]) -> None:
    """Check an adapter before the verbs that load their data without asking a plugin first."""
    if running_verb() in RUNS_ADAPTER and cfg.get("lora_model_dir"):
        from .saved import read_saved

        read_saved("lora_model_dir", str(cfg["lora_model_dir"]))


def _check_planning(cfg: Mapping[str, Any], block: AlphaLoraConfigBlock) -> None:
    """Check what a new plan needs of the rest of the configuration."""
    from ..allocation.optimizers import state_bytes

    if cfg.get("lora_model_dir") or block.plan:
        return
    request = plan_request(cfg, block)
    if request.optimizer is not None:
        state_bytes(request.optimizer, (1, 1))
    if request.needs in SAMPLED:
        from .samples import check_data

        check_data(cfg)
        key = _sharded_by(cfg)
        if key is not None:
            raise ValueError(
                f"`alphalora.allocation: {request.strategy}` goes by {SAMPLED[request.needs]} with "
                f"whole weights, which `{key}` shards. Plan first, in one process: `alphalora plan "
                f"config.yml --output plan.json` without `{key}`, then set `alphalora.plan: "
                "plan.json`."
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
    """Refuse learning rates of our own where something else sets one for all."""
    if not lr_ratios(cfg.get("loraplus_lr_ratio"), cfg[ADAPTER]["router_lr_ratio"]):
        return
    keys = "`loraplus_lr_ratio` and `alphalora.router_lr_ratio` do nothing where"
    settings = _deepspeed_settings(cfg)
    for block, advice in (
        ("optimizer", "and set `optimizer` in the YAML"),
        ("scheduler", "and set `lr_scheduler` in the YAML"),
    ):
        if block in settings:
            raise ValueError(
                f"{keys} the DeepSpeed configuration names the {block}. Remove its `{block}` "
                f"block, {advice}."
            )
    if cfg.get("lr_scheduler") == "one_cycle":
        raise ValueError(
            f"{keys} `lr_scheduler: one_cycle` gives all parameters one rate. Use another "
            "`lr_scheduler`, or remove them."
        )


def _deepspeed_settings(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    settings = cfg.get("deepspeed")
    if isinstance(settings, str) and Path(settings).is_file():
        settings = json.loads(Path(settings).read_text(encoding="utf-8"))
    return settings if isinstance(settings, Mapping) else {}
