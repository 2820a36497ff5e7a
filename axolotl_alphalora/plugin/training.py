"""What is changed of a trainer before it trains: its learning rates, and how it saves an adapter.

The host and PEFT each split parameters for LoRA+ in a way of their own, by the names of LoRA. Here
the finished optimizer's groups are split, so that every optimizer of the host is treated alike.
"""

from __future__ import annotations

import math
import os
import pickle
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..files import ADAPTER_CARD, ADAPTER_CONFIG, ADAPTER_WEIGHTS, write_whole
from ..hosts.constants import SCHEDULER_FILE
from ..report.markdown import experts_section

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import Trainer

    from ..adapter import AlphaLoraConfig


B, ROUTER = "alphalora_B", "alphalora_router"


def lr_ratios(loraplus_lr_ratio: float | None, router_lr_ratio: float) -> dict[str, float]:
    """Factors on the learning rate by the kind of parameter; kinds with factor 1 are left out.

    LoRA+ (arXiv 2402.12354) raises the learning rate of B. The router, like A, acts on the
    layer's input and keeps the base rate, times its own ratio.
    """
    wanted = {B: loraplus_lr_ratio or 1.0, ROUTER: router_lr_ratio}
    return {kind: ratio for kind, ratio in wanted.items() if ratio != 1.0}


def scale_learning_rates(trainer: Any, factors: Mapping[str, float]) -> None:
    """Have a trainer split the groups of its optimizer, and resume with the same ratios alone.

    Args:
        trainer: An HF Trainer, or one derived from it.
        factors: What `lr_ratios` returns.
    """
    create = trainer.create_optimizer

    def create_optimizer(*args: Any, **kwargs: Any) -> Any:
        # The host's own LoRA+ would count a second time.
        given, trainer.args.loraplus_lr_ratio = trainer.args.loraplus_lr_ratio, None
        try:
            optimizer = create(*args, **kwargs)
        finally:
            trainer.args.loraplus_lr_ratio = given
        split_groups(optimizer, trainer.model, factors)
        return optimizer

    if factors:
        trainer.create_optimizer = create_optimizer
    load = trainer._load_optimizer_and_scheduler

    def load_optimizer_and_scheduler(checkpoint: str | None) -> None:
        saved = _saved_rates(checkpoint)
        own = getattr(trainer.lr_scheduler, "base_lrs", None)
        if saved and own:
            check_ratios(saved, own, trainer.args.learning_rate, factors.values())
        load(checkpoint)

    trainer._load_optimizer_and_scheduler = load_optimizer_and_scheduler


def split_groups(
    optimizer: torch.optim.Optimizer, model: nn.Module, factors: Mapping[str, float]
) -> None:
    """Split every group of a fresh optimizer by the kind of parameter.

    Args:
        optimizer: An optimizer that has taken no step.
        model: The model whose parameters it holds.
        factors: Name of a kind of parameter to the factor on its learning rate.

    Raises:
        ValueError: If the optimizer sets its learning rates by itself, or does not hold the
            parameters in its groups.
    """
    kinds = {id(p): _kind(name, factors) for name, p in model.named_parameters() if p.requires_grad}
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        if group.get("lr") is None:
            raise ValueError(
                f"`loraplus_lr_ratio` and `alphalora.router_lr_ratio` multiply a learning rate, "
                f"but {type(optimizer).__name__} sets its own. Use another `optimizer`."
            )
        for kind in (None, *factors):
            params = [p for p in group["params"] if kinds.get(id(p)) == kind]
            if params:
                factor = 1.0 if kind is None else factors[kind]
                groups.append({**group, "params": params, "lr": group["lr"] * factor})
    held = {id(p) for group in groups for p in group["params"]}
    if not all(key in held for key, kind in kinds.items() if kind is not None):
        raise ValueError(
            f"`loraplus_lr_ratio` and `alphalora.router_lr_ratio` split an optimizer's groups, but "
            f"{type(optimizer).__name__} does not hold the experts in them. Use another "
            "`optimizer`."
        )
    optimizer.param_groups[:] = groups


def _saved_rates(checkpoint: str | None) -> list[float]:
    """The learning rates that the groups of a checkpoint began with; empty if it has none."""
    import torch

    file = Path(checkpoint or "") / SCHEDULER_FILE
    if not file.is_file():
        return []
    with suppress(pickle.UnpicklingError):  # then the host says what is wrong with it
        return torch.load(file, map_location="cpu", weights_only=True).get("base_lrs") or []
    return []


def check_ratios(
    saved: Sequence[float], own: Sequence[float], rate: float, factors: Iterable[float]
) -> None:
    """Check that a checkpoint's learning rates have the ratios of a run's.

    A resumed run goes on with the rates of its checkpoint, so that others would do nothing.

    Args:
        saved: Those of the checkpoint's groups of parameters.
        own: Those of the run's; there may be other groups with the same rates.
        rate: The run's learning rate.
        factors: What multiplies it in some groups.

    Raises:
        ValueError: If the ratios differ; names the keys.
    """
    ratios = {1.0, *factors}
    base = saved[0]
    if len(saved) == len(own):
        base = next((s for s, o in zip(saved, own, strict=True) if _among(o, [rate])), base)
    absolute = [one for one in own if not _among(one, [ratio * rate for ratio in ratios])]
    known = [*(ratio * base for ratio in ratios), *absolute]
    if all(_among(ratio * base, saved) for ratio in ratios) and all(
        _among(one, known) for one in saved
    ):
        return
    raise ValueError(
        f"The learning rates of the checkpoint are {_listed(saved)}, and those of this run "
        f"{_listed(own)}: `alphalora.router_lr_ratio`, `loraplus_lr_ratio` or another key with a "
        "rate of its own has changed, and a resumed run keeps the checkpoint's. Set it back, or "
        "start a new run from the adapter (`lora_model_dir`)."
    )


def _among(value: float, others: Iterable[float]) -> bool:
    return any(math.isclose(value, other, rel_tol=1e-6) for other in others)


def _listed(rates: Iterable[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in dict.fromkeys(rates))


def _kind(name: str, factors: Mapping[str, float]) -> str | None:
    # A router of low rank has two parts, alphalora_router and alphalora_router_down.
    return next((kind for kind in factors if f".{kind}" in name), None)


_DRAFT = ".saving-"


def save_whole(model: Any) -> None:
    """Have a PEFT model write its files beside the old ones first, and then put them in place.

    PEFT writes into the final files: a full disk or a kill would leave a part of an adapter there,
    or the weights of one beside the settings of another.

    Args:
        model: The `PeftModel`; its `save_pretrained` is replaced.
    """
    save = model.save_pretrained

    def save_pretrained(save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        if Path(save_directory).is_file() or not kwargs.get("is_main_process", True):
            save(save_directory, *args, **kwargs)
            return
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_DRAFT}*"):  # by a run that was killed here
            shutil.rmtree(left)
        with TemporaryDirectory(dir=folder, prefix=_DRAFT) as name:
            draft = Path(name)
            if (folder / ADAPTER_CARD).is_file():
                shutil.copy2(folder / ADAPTER_CARD, draft)  # PEFT adds to the card it finds
            save(str(draft), *args, **kwargs)
            # The settings come last, so that a new adapter is complete once they are there.
            files = sorted(p for p in draft.rglob("*") if p.is_file())
            for file in sorted(files, key=lambda p: p.name == ADAPTER_CONFIG):
                with file.open("rb") as written:
                    os.fsync(written.fileno())
                target = folder / file.relative_to(draft)
                target.parent.mkdir(exist_ok=True)
                os.replace(file, target)

    model.save_pretrained = save_pretrained


def save_settings(trainer: Trainer) -> None:
    """Have every checkpoint hold the adapter's settings, also one that FSDP saves in shards.

    With sharded states the weights are in FSDP's own files, and then nothing writes the settings,
    which a run reads before it resumes.

    Args:
        trainer: The trainer; its `save_model` is replaced.
    """
    save = trainer.save_model
    model: Any = trainer.model
    config: AlphaLoraConfig = model.peft_config["default"]

    def save_model(output_dir: str | None = None, _internal_call: bool = False) -> None:
        save(output_dir, _internal_call=_internal_call)
        folder = Path(output_dir or str(trainer.args.output_dir))
        if _internal_call and trainer.args.should_save and not (folder / ADAPTER_CONFIG).exists():
            config.save_pretrained(str(folder))

    trainer.save_model = save_model  # type: ignore[method-assign]


def keep_settings(config: Any, folder: Path) -> None:
    """Have a run's first writing of its settings leave those of an adapter that is there.

    The host writes them before it trains, for a look at them: a run that dies before its own
    adapter is whole would leave an earlier one with settings that are not its own.

    Args:
        config: The adapter's configuration; its `save_pretrained` is replaced.
        folder: The run's output directory.
    """
    save = config.save_pretrained

    def save_pretrained(save_directory: str | os.PathLike, **kwargs: Any) -> None:
        vars(config).pop("save_pretrained", None)
        target = Path(save_directory)
        if target.resolve() != folder.resolve() or not (target / ADAPTER_WEIGHTS).exists():
            save(save_directory, **kwargs)

    config.save_pretrained = save_pretrained


_START, _END = "<!-- axolotl-alphalora -->", "<!-- /axolotl-alphalora -->"


def describe_in_cards(trainer: Trainer) -> None:
    """Have every model card that a trainer or its PEFT model writes end in our section.

    Args:
        trainer: The trainer; its `create_model_card` and the model's `create_or_update_model_card`
            are replaced.
    """
    model: Any = trainer.model
    of_model, of_trainer = model.create_or_update_model_card, trainer.create_model_card
    config: AlphaLoraConfig = model.peft_config["default"]

    def from_model(output_dir: str) -> None:
        of_model(output_dir)
        add_section(Path(output_dir), config)

    def from_trainer(*args: Any, **kwargs: Any) -> None:
        of_trainer(*args, **kwargs)
        if trainer.is_world_process_zero() and trainer.args.output_dir is not None:
            add_section(Path(trainer.args.output_dir), config)

    model.create_or_update_model_card = from_model
    trainer.create_model_card = from_trainer  # type: ignore[method-assign]


def add_section(folder: Path, config: AlphaLoraConfig) -> None:
    """Put our section at the end of a model card, in place of an earlier one.

    Args:
        folder: Where the card is; without one nothing is written.
        config: The adapter's configuration.
    """
    card = folder / ADAPTER_CARD
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8")
    before, _, rest = text.partition(_START)
    _, end, after = rest.partition(_END)
    if not end:  # by hand, or none yet
        before, after = text, ""
    parts = [before.rstrip(), f"{_START}\n{experts_section(config)}\n{_END}", after.strip()]
    write_whole(card, "\n\n".join(part for part in parts if part) + "\n")
