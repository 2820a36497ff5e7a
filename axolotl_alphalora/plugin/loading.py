"""From the host's configuration to an adapted model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peft
from torch import nn

from ..adapter import AlphaLoraConfig
from ..adapter.saved_lora import read_lora
from ..adapter.warm_start import WarmStart
from ..allocation import SAMPLED, Plan
from ..hosts.constants import CLASSIFIER_HEADS
from ..planning import (
    ADAPTER,
    ModelNeeded,
    WeightsNotReadable,
    check_optimizer,
    check_plan,
    plan_from_files,
    plan_from_model,
    plan_request,
    read_block,
)
from ..planning.config import plain
from ..planning.request import REQUEST_KEYS
from . import host
from .saved import changes, check_against_yaml, read_saved, saved_adapter
from .shared import is_first_process, on_one_process, progress_bar

_DATA = (
    "datasets",
    "val_set_size",
    "sequence_len",
    "chat_template",
    "tokenizer_config",
    "special_tokens",
    "train_on_inputs",
    "seed",
    "load_in_4bit",
    "load_in_8bit",
    "bf16",
    "fp16",
)
"""What is measured on samples depends on these besides the request."""


class Allocation:
    """The counts of one run, settled before the model is loaded wherever that is possible.

    Attributes:
        block: The configuration's `alphalora:` block.
        request: What a plan is asked for with it.
        counts: Exact module name to experts, or None until the model is loaded.
        ranks: Exact module name to rank of its experts, where it is not the request's.
        plan: Where the counts come from, as a JSON object; None for an adapter without one.
        saved: The `adapter_config.json` that rules, where the run starts from an adapter.
    """

    def __init__(self, cfg: Any) -> None:
        self.block = read_block(cfg)
        self.request = plan_request(cfg, self.block)
        self._key = _key(cfg, self.request.needs)
        self.counts: dict[str, int] | None = None
        self.ranks: dict[str, int] = {}
        self.plan: dict[str, Any] | None = None
        self.saved: dict[str, Any] = {}
        self._settle(cfg)
        check_frozen(cfg, self)
        check_start(cfg, self)

    def serves(self, cfg: Any) -> bool:
        """Whether this is the allocation for a configuration too."""
        return self._key == _key(cfg, self.request.needs)

    def settle_from_model(self, model: nn.Module, cfg: Any) -> None:
        """Plan from the loaded model, if the base's files could not tell."""
        if self.counts is None:
            from .session import on_samples

            measure = on_samples(cfg, model)
            self._take(
                on_one_process(lambda: plan_from_model(self.request, model, _progress, measure)[0])
            )

    def _settle(self, cfg: Any) -> None:
        from .host import init_distributed_state

        init_distributed_state()
        saved, path = saved_adapter(cfg), self.block.plan
        if saved is not None:
            config = read_saved(*saved)
            check_against_yaml(cfg, self.block, self.request, *saved, config)
            self._report_changes(cfg, config)
            self.saved = config
            self.counts, self.plan = config["num_experts"], config["plan"]
            self.ranks = config.get("rank_pattern", {})
            host.get_logger(__name__).info("AlphaLoRA: experts per module as saved in %s", saved[1])
            return
        if path is not None:
            plan = Plan.load(path)
            try:
                check_plan(plan, self.request)
                check_optimizer(plan, cfg)
            except ValueError as error:
                raise ValueError(
                    f"alphalora.plan {path} does not fit this run: {error}."
                ) from error
            self._take(plan)
            return
        try:
            self._take(on_one_process(lambda: plan_from_files(self.request, _progress)[0]))
        except WeightsNotReadable as error:
            host.get_logger(__name__).warning(
                "AlphaLoRA: %s. The plan is made from the loaded model's weights instead.", error
            )
        except ModelNeeded as error:
            host.get_logger(__name__).info(
                "AlphaLoRA: %s. It is made as soon as the model is loaded.", error
            )

    def _report_changes(self, cfg: Any, saved: Mapping[str, Any]) -> None:
        for name, value in changes(cfg, self.block).items():
            if value != saved.get(name, value):
                host.get_logger(__name__).info(
                    "AlphaLoRA: %s is %s as the YAML says, and no longer %s as in the adapter.",
                    name,
                    value,
                    saved[name],
                )

    def _take(self, plan: Plan) -> None:
        self.counts, self.ranks, self.plan = plan.counts, plan.rank_pattern, plan.to_dict()
        if is_first_process():
            from ..report.plan_sentences import cautions
            from ..report.terminal import print_plan

            print_plan(plan)
            for line in cautions(plan):
                host.get_logger(__name__).warning("AlphaLoRA: %s", line)


def _key(cfg: Any, needs: str) -> list[Any]:
    """Everything an allocation depends on; the contents of a plan's file and the data included."""
    read = [plain(cfg.get(key)) for key in REQUEST_KEYS]
    plan = (cfg.get(ADAPTER) or {}).get("plan")
    content = Path(plan).read_bytes() if plan and Path(plan).is_file() else None
    data = [plain(cfg.get(key)) for key in _DATA] if needs in SAMPLED else None
    return [read, saved_adapter(cfg), content, data]


def check_frozen(cfg: Any, allocation: Allocation) -> None:
    """Refuse experts in layers that the host freezes, as far as the counts are known by now.

    Raises:
        ValueError: If `freeze_mm_modules` is set and such a layer has experts; names the first.
    """
    if not cfg.freeze_mm_modules:
        return
    parts = set(host.frozen_parts)
    for name, count in (allocation.counts or {}).items():
        if count and not parts.isdisjoint(name.split(".")):
            out = "leave such layers out with `lora_exclude_modules`, or "
            raise ValueError(
                f"`freeze_mm_modules` would freeze the experts of {name}: "
                f"{'' if allocation.saved else out}remove the option."
            )


def check_start(cfg: Any, allocation: Allocation) -> None:
    """Refuse a LoRA that the new adapter cannot start from, as far as that is known by now.

    Raises:
        ValueError: If `alphalora.init_from` is no plain LoRA, or does not fit the counts.
    """
    folder = allocation.block.init_from
    if folder is None:
        return
    if allocation.saved:
        host.get_logger(__name__).info(
            "AlphaLoRA: alphalora.init_from is not read: the adapter is there already."
        )
        return
    try:
        lora = read_lora(folder)
        if allocation.plan is not None:
            config = _peft_config(cfg, allocation)
            if cfg.reward_model or cfg.process_reward_model:  # PEFT adds their heads later
                kept = config.modules_to_save or []
                config.modules_to_save = [*kept, *CLASSIFIER_HEADS]
            plan = Plan.from_dict(allocation.plan)
            sizes = {m.name: (m.shape[1], m.shape[0]) for m in plan.modules}
            WarmStart(lora, config.init_split).check(config, sizes)
    except ValueError as error:
        raise ValueError(f"alphalora.{error}") from error
    base = lora.config.get("base_model_name_or_path")
    if base not in (None, cfg.base_model):
        host.get_logger(__name__).warning(
            "AlphaLoRA: the LoRA in alphalora.init_from was trained on %s, and base_model is %s.",
            base,
            cfg.base_model,
        )


def adapter_config(cfg: Any, allocation: Allocation, model: nn.Module) -> AlphaLoraConfig:
    """The PEFT config for the run; every honoured option of the YAML is in it."""
    from .host import peft_task_type

    allocation.settle_from_model(model, cfg)
    config = _peft_config(cfg, allocation)
    config.task_type = peft_task_type(model)
    return config


def _peft_config(cfg: Any, allocation: Allocation) -> AlphaLoraConfig:
    """The same but for the task, which the loaded model decides."""
    assert allocation.counts is not None
    block = allocation.block
    settings: dict[str, Any] = {
        "r": allocation.request.rank,
        "lora_alpha": cfg.lora_alpha,
        "use_rslora": bool(cfg.peft_use_rslora),
        "modules_to_save": allocation.request.targets.modules_to_save,
        **asdict(block.mixture),
        "lora_dropout": cfg.lora_dropout or 0.0,
        "aux_loss_coef": block.aux_loss_coef,
        "balance_over": block.balance_over,
    }
    if allocation.saved:
        settings |= {key: allocation.saved[key] for key in settings if key in allocation.saved}
        settings |= changes(cfg, block)
        settings["base_blocks"] = allocation.saved.get("base_blocks")  # older ones have none
    if block.init_from is not None and not allocation.saved:
        settings |= {"init_from": block.init_from, "init_split": block.init_split}
    config = AlphaLoraConfig(
        base_model_name_or_path=cfg.base_model,
        revision=cfg.revision_of_model,
        num_experts=dict(allocation.counts),
        rank_pattern=dict(allocation.ranks),
        plan=allocation.plan,
        **settings,
    )
    config.saved = bool(allocation.saved)
    return config


def adapt(cfg: Any, allocation: Allocation, model: Any) -> tuple[peft.PeftModel, peft.PeftConfig]:
    """Wrap the host's model: a new adapter, or the one in `lora_model_dir`."""
    from transformers import set_seed

    options: dict[str, Any] = {}
    if cfg.peft_autocast_adapter_dtype is not None:
        options["autocast_adapter_dtype"] = cfg.peft_autocast_adapter_dtype
    if cfg.lora_model_dir:
        config = AlphaLoraConfig.from_pretrained(cfg.lora_model_dir)
        for name, value in changes(cfg, allocation.block).items():
            setattr(config, name, value)
        if cfg.lora_on_cpu:
            options |= {"max_memory": {"cpu": "256GiB"}, "device_map": {"": "cpu"}}
        adapted = peft.PeftModel.from_pretrained(
            model, cfg.lora_model_dir, config=config, is_trainable=True, **options
        )
    else:
        if cfg.seed is not None:
            set_seed(cfg.seed)
        adapted = peft.get_peft_model(model, adapter_config(cfg, allocation, model), **options)
    if is_first_process():
        adapted.print_trainable_parameters()
    return adapted, adapted.peft_config["default"]


def _progress(names: Sequence[str]) -> Callable[[Any], None]:
    return progress_bar("spectra", "matrix", len(names))
