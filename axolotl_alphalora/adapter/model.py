"""Injection of AlphaLoRA layers into a model, as a PEFT tuner."""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig
from torch import nn

from ..blocks import block_name
from ..hosts.constants import TRL_REFERENCE, TRL_TRAINED
from ..hosts.peft import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    BaseTuner,
    check_target_module_exists,
    get_quantization_kwargs,
)
from .balance import LoadBalancer
from .batch import tokens_of
from .config import AlphaLoraConfig
from .fit import (
    block_counts,
    check_counts,
    check_depth,
    check_known,
    check_names,
    check_ranks,
    check_sizes,
    check_weights,
    weight_shapes,
)
from .layer import MERGE_REFUSAL, AlphaLoraLayer
from .placing import copy_trained, keep_experts_loaded, kept_frozen
from .targets import heads, is_all_linear, resolve_targets
from .warm_start import WarmStart


class AlphaLoraModel(BaseTuner):
    """A model whose linear layers carry mixtures of LoRA experts, number and rank per module.

    Created by `peft.get_peft_model` and `PeftModel.from_pretrained`; see [`AlphaLoraConfig`].

    Args:
        model: The base model.
        peft_config: The adapter's configuration, which stays as it is: the model has a copy, with
            `num_experts` resolved to a mapping from exact module name to count.
        adapter_name: Name of the adapter.
        low_cpu_mem_usage: Create the adapter's weights on the meta device.
        state_dict: Keys of a checkpoint, where PEFT takes the targets from those.

    Raises:
        TypeError: If a target is no linear layer; names the module.
        ValueError: If counts, ranks and targets do not fit the model; names the first module.
    """

    prefix = "alphalora_"
    tuner_layer_cls = AlphaLoraLayer
    _start: Callable[[nn.Module, str], None] | None = None
    target_module_mapping: dict[str, Any] = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig | dict[str, PeftConfig],
        adapter_name: str,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        if not isinstance(peft_config, PeftConfig):
            peft_config = dict(peft_config)
        super().__init__(model, peft_config, adapter_name, low_cpu_mem_usage, state_dict)

    def _prepare_adapter_config(
        self, peft_config: AlphaLoraConfig, model_config: dict[str, Any]
    ) -> AlphaLoraConfig:
        if peft_config.counted is None:
            super()._prepare_adapter_config(peft_config, model_config)
        return peft_config

    def _prepare_model(self, peft_config: AlphaLoraConfig, model: nn.Module) -> None:
        """Resolve the counts and refuse what does not fit, before any module is replaced."""
        _keep_heads(peft_config, model)
        if peft_config.saved:
            check_depth(peft_config, model)
        check_known(peft_config, "num_experts", model)
        check_known(peft_config, "rank_pattern", model)
        targets = resolve_targets(peft_config, model)
        if isinstance(peft_config.num_experts, dict):
            if not peft_config.saved:
                check_counts(peft_config.num_experts, targets)
        else:
            peft_config.num_experts = dict.fromkeys(targets, peft_config.num_experts)
        check_ranks(peft_config.rank_pattern, peft_config.num_experts)
        peft_config.base_blocks = block_counts(targets, model)
        _warn_of_idle_head(peft_config, model)
        # Patterns may match otherwise in another model; the exact names cannot.
        peft_config.target_modules = set(targets)
        start = WarmStart.of(peft_config)
        if start is not None:
            start.check_model(peft_config, model)

    @staticmethod
    def _check_target_module_exists(peft_config: AlphaLoraConfig, key: str) -> Any:
        assert isinstance(peft_config.num_experts, dict)
        if peft_config.num_experts.get(key):
            return True
        # PEFT wants to know whether the module was excluded or never named.
        found = check_target_module_exists(peft_config, key)
        return False if found else found

    def _create_and_replace(
        self,
        peft_config: AlphaLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config.num_experts, dict)
        num_experts = peft_config.num_experts.get(current_key)
        if num_experts is None:
            raise ValueError(
                f"The weights to load hold {current_key}, which has no entry in num_experts: they "
                "and the config do not belong together."
            )
        rank = peft_config.rank_of(current_key)
        if isinstance(target, AlphaLoraLayer):
            target.update_layer(adapter_name, peft_config, num_experts, rank)
            return
        layer = AlphaLoraLayer(
            target,
            adapter_name,
            peft_config,
            num_experts,
            rank,
            current_key,
            find_balancer(self.model) or LoadBalancer(),
            **{"get_apply_tensor_subclass": _no_merge} | get_quantization_kwargs(self),
        )
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Replace the targets by AlphaLoRA layers; see [`BaseTuner.inject_adapter`].

        The config is resolved in a copy, which is that of the adapted model. A new adapter starts
        from the LoRA in `init_from`, if there is one; TRL's reference from what it refers to.
        """
        try:
            check_names(self.peft_config, model)
        except ValueError:
            del self.peft_config[adapter_name]  # a model of transformers shares it, and goes on
            raise
        given = self.peft_config[adapter_name]
        config: Any = copy.deepcopy(given)
        if state_dict is not None:
            config = config.without_start()
            config.saved = True
        self.peft_config[adapter_name] = config
        super().inject_adapter(
            model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict
        )
        # PEFT shortens long lists to suffixes, which mean other modules in another model.
        config.target_modules = {name for name, count in config.num_experts.items() if count}
        warm, start = WarmStart.of(config), None
        if warm is not None:
            start = warm.apply
            self.peft_config[adapter_name] = config.without_start()
        elif adapter_name == TRL_REFERENCE and given is self.peft_config.get(TRL_TRAINED):
            start = _copy_trained
        if start is not None:
            start(model, adapter_name)
        self._start = start
        _share_blocks(model, adapter_name)
        _tell_tokens(model)
        balancer = find_balancer(model)
        if balancer is not None:
            balancer.install(model)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # The layer holds its base and is on its device already; PEFT's own would also move 8-bit
        # layers whose new weights are still on the meta device.
        setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "AlphaLoRA cannot mix adapters within a batch (`adapter_names`): run one batch per "
                "adapter, with `set_adapter` in between."
            )
        yield

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        layers = adapted_layers(self.model)
        keep_experts_loaded(layers)
        with kept_frozen(layers, adapter_name):
            super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        start, self._start = self._start, None
        if start is not None and autocast_adapter_dtype:
            start(self.model, adapter_name)  # again: the base's dtype had rounded it

    def _check_merge_allowed(self) -> None:
        raise ValueError(MERGE_REFUSAL)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        super()._unload_and_optionally_merge(*args, **kwargs)
        LoadBalancer.remove(self.model)
        return self.model

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: AlphaLoraConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        """Take what PEFT finds, and the weights in recomputed blocks, which it overlooks."""
        found = super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )
        keys = weight_shapes(model, adapter_name)
        return found | {key: state_dict[key] for key in keys if key in state_dict}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: AlphaLoraConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Give the checkpoint's keys the adapter's name; refuse weights that do not fit.

        Raises:
            ValueError: Names the first tensor that is missing, left over or of another shape.
        """
        remapped = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        expected = weight_shapes(model, adapter_name)
        for key in expected:
            saved = cls._remove_adapter_name_from_key(key, adapter_name)
            if saved in remapped:
                remapped[key] = remapped.pop(saved)
        check_sizes(config, model, adapter_name, remapped)
        check_weights(expected, remapped)
        return remapped


def _no_merge() -> Any:
    """How torchao would quantise a merged weight again."""
    raise NotImplementedError(MERGE_REFUSAL)


def adapted_layers(model: nn.Module, adapter_name: str | None = None) -> list[AlphaLoraLayer]:
    """The AlphaLoRA layers of a model, in its order; with a name, those that have that adapter."""
    layers = [module for module in model.modules() if isinstance(module, AlphaLoraLayer)]
    return [one for one in layers if adapter_name is None or adapter_name in one.alphalora_A]


def find_balancer(model: nn.Module) -> LoadBalancer | None:
    """The balancer that the routed layers of a model share; None if it has no AlphaLoRA layer."""
    for module in model.modules():
        if isinstance(module, AlphaLoraLayer):
            return module.balancer
    return None


def find_routers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """The routers of a model's active adapters, as the balancer names them.

    Returns:
        Name to number of experts and experts of a token, in the model's order. A name is that of
        the module, a dot and that of the adapter.
    """
    return {
        f"{layer.module_name}.{name}": (layer.num_experts[name], layer.top_k[name])
        for layer in adapted_layers(model)
        for name in layer.active_adapters
        if name in layer.alphalora_router
    }


def _copy_trained(model: nn.Module, adapter_name: str) -> None:
    copy_trained(adapted_layers(model, adapter_name), adapter_name)


def _share_blocks(model: nn.Module, adapter_name: str) -> None:
    """Tell every router of an adapter its share of its block: 1 / routers of the block."""
    routed: dict[str, list[AlphaLoraLayer]] = defaultdict(list)
    for layer in adapted_layers(model):
        if adapter_name in layer.alphalora_router:
            routed[block_name(layer.module_name)].append(layer)
    for layers in routed.values():
        for layer in layers:
            layer.block_share[adapter_name] = 1.0 / len(layers)


def _tell_tokens(model: nn.Module) -> None:
    """Tell every layer whose tokens it sees."""
    layers = adapted_layers(model)
    seen = tokens_of(model, [layer.module_name for layer in layers])
    for layer in layers:
        layer.tokens = seen[layer.module_name]


def _keep_heads(config: AlphaLoraConfig, model: nn.Module) -> None:
    """Train the heads of the config's task in full.

    For some tasks PEFT says so only later, in the caller's config, which is not the model's.
    """
    kept = [h for task, h in heads(config, model) if task == config.task_type]
    # PEFT adds them to the caller's config, each time that it is used.
    config.modules_to_save = list(dict.fromkeys([*(config.modules_to_save or ()), *kept])) or None


def _warn_of_idle_head(config: AlphaLoraConfig, model: nn.Module) -> None:
    """Say so where a head gets no experts and is not trained in full either."""
    if config.saved or not is_all_linear(config):
        return
    kept = config.modules_to_save or []
    for task, head in heads(config, model):
        if hasattr(model, head) and head not in kept:
            warnings.warn(
                f"The head {head} of {type(model).__name__} gets no experts and is not trained: "
                f"give get_peft_model a config with task_type={task!r}, or add {head!r} to "
                "modules_to_save.",
                stacklevel=2,
            )
