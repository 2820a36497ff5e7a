"""The plugin: which of Axolotl's hooks does what. The work is done by the modules beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..planning import ADAPTER
from . import quantization, refusals
from .host import AdapterCapabilities, BasePlugin, check_host

check_host()

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

    from .loading import Allocation


class AlphaLoraPlugin(BasePlugin):
    """Adds `adapter: alphalora` to Axolotl; acts on no other run."""

    def __init__(self) -> None:
        super().__init__()
        self._allocation: Allocation | None = None
        self._config: Any = None
        self._weights: Mapping[str, Any] = {}

    def register(self, cfg: Any) -> None:
        """Refuse, before the host's validators, what they would give their adapters' advice on."""
        if cfg.get("adapter") == ADAPTER:
            refusals.check(cfg, early=True)

    def get_input_args(self) -> str:
        """The schema of the `alphalora:` block, by its dotted name."""
        return "axolotl_alphalora.plugin.args.AlphaLoraArgs"

    def get_adapter_capabilities(self) -> list[AdapterCapabilities]:
        """Not `lora_like`: the host's LoRA loader must not stand in for ours."""
        return [AdapterCapabilities(name=ADAPTER, lora_like=False, relora=False)]

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        """Settle the counts before `axolotl train` tokenises, so that errors come first."""
        if cfg.adapter == ADAPTER and not preprocess:
            self._settle(cfg)

    def pre_model_load(self, cfg: Any) -> None:
        """Settle the counts and the base's quantisation; errors come before the model does."""
        if cfg.adapter != ADAPTER:
            return
        self._settle(cfg)
        quantization.apply(cfg)

    def post_model_build(self, cfg: Any, model: Any) -> None:
        """Check that the base is what the YAML asked for, and ready it for training."""
        if cfg.adapter != ADAPTER:
            return
        from .quantised_base import assert_quantized, prepare, warn_unquantised

        assert_quantized(model, cfg)
        warn_unquantised(model)
        prepare(model, cfg)

    def load_adapter(
        self, model: Any, cfg: Any, inference: bool = False, config_only: bool = False
    ) -> tuple[Any, Any] | None:
        """Wrap the model; with `config_only` (DPO and its kin) the trainer does that."""
        if cfg.adapter != ADAPTER:
            return None
        from .experts import weights
        from .loading import adapt, adapter_config

        assert self._allocation is not None
        if config_only:
            self._config = adapter_config(cfg, self._allocation, model)
            return None, self._config
        adapted, self._config = adapt(cfg, self._allocation, model)
        if not inference:
            self._weights = weights(adapted)
        # For GDPO the host would have TRL wrap the wrapped model a second time.
        return adapted, None if cfg.rl == "gdpo" else self._config

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Trainer) -> list[TrainerCallback]:
        """Connect the load-balancing loss and the learning rates with the trainer."""
        if cfg.adapter != ADAPTER:
            return []
        from ..adapter import find_balancer
        from ..trainer import AlphaLoraCallback
        from .experts import check_trained, undo_casts, warn_of_dropout
        from .training import (
            describe_in_cards,
            keep_settings,
            lr_ratios,
            save_settings,
            save_whole,
            scale_learning_rates,
        )
        from .verbs import warn_when_evaluated

        model: Any = trainer.model
        if find_balancer(model) is None:
            return []
        check_trained(model)
        undo_casts(model, self._weights, fp32=cfg.peft_autocast_adapter_dtype is not False)
        self._weights = {}
        warn_of_dropout(trainer, cfg.lora_dropout)
        describe_in_cards(trainer)
        save_settings(trainer)
        save_whole(model)
        keep_settings(self._config, Path(cfg.output_dir))
        assert self._allocation is not None
        block = self._allocation.block
        scale_learning_rates(trainer, lr_ratios(cfg.loraplus_lr_ratio, block.router_lr_ratio))
        if not cfg.lora_model_dir:
            warn_when_evaluated(trainer)
        callback = AlphaLoraCallback(block.log_blocks_every)
        callback.attach(trainer)
        return [callback]

    def _settle(self, cfg: Any) -> None:
        from .checkpoints import skip_unfinished
        from .loading import Allocation

        skip_unfinished(cfg)
        # A reference model is loaded with the same configuration, and needs no second plan.
        if self._allocation is None or not self._allocation.serves(cfg):
            self._allocation = Allocation(cfg)
