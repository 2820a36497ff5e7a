"""Trains the tiny Llama with the real HF Trainer on one and on two CPU ranks, engine by engine.

Run as `ranks.py FOLDER`. Imports once and forks a world for each run, so that no patch and no
state of accelerate outlives it. Every run leaves a folder of its own: `gradients.pt` (the first
step's, whole), `report.json`, `logits.pt`, `checkpoint-*`, `final`; or `error.txt`.
"""

import gc
import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import transformers  # noqa: E402
from accelerate.state import PartialState  # noqa: E402
from accelerate.utils import DistributedType  # noqa: E402
from peft import PeftModel  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from transformers import (  # noqa: E402
    BitsAndBytesConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from axolotl_alphalora.plugin.training import save_settings  # noqa: E402
from axolotl_alphalora.trainer import AlphaLoraCallback  # noqa: E402
from helpers.balancing import Rows, SharedLoss, stack, uneven_rows  # noqa: E402
from helpers.models import tiny_llama  # noqa: E402
from helpers.worlds import in_a_world  # noqa: E402
from scale.starting import (  # noqa: E402
    NF4,
    balanced_globally,
    by_the_host,
    cut,
    fresh,
    loaded,
    on_meta_but_for_rank_0,
    on_nf4,
)

SHARDED = "SHARDED_STATE_DICT"
REENTRANT = {
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": True},
}
ONE_STEP = {"max_steps": 1, "save_steps": 1}
BYTES = {"bnb_4bit_quant_storage": "uint8"}
LAYERS = {"transformer_layer_cls_to_wrap": "LlamaDecoderLayer"}
ROWS = uneven_rows(32, 40)


class FirstGradients(TrainerCallback):
    """The whole gradient of the first step, as the optimizer is about to get it; counts steps."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}
        self.steps = 0

    def on_step_begin(self, args, state, control, **kwargs):
        self.steps += 1

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.take(model, lambda parameter: parameter.grad)

    def take(self, model, gradient_of):
        if self.gradients:
            return
        for name, parameter in model.named_parameters():
            gradient = gradient_of(parameter) if parameter.requires_grad else None
            if gradient is None:
                continue
            whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            name = name.removeprefix("module.").replace("_checkpoint_wrapped_module.", "")
            self.gradients[name] = whole.clone()


def as_on_gpus() -> None:
    """Let accelerate use FSDP and DeepSpeed, which it switches on for accelerators only."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda self, *args: ("gloo", DistributedType.MULTI_GPU)


def ddp(**changes: Any) -> dict[str, Any]:
    return {"use_cpu": True, "ddp_find_unused_parameters": False, **changes}


def fsdp(mixed_precision: str | None = None, **changes: Any) -> dict[str, Any]:
    as_on_gpus()
    if mixed_precision:
        os.environ["ACCELERATE_MIXED_PRECISION"] = mixed_precision
    config = {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
    }
    return {"fsdp": True, "fsdp_config": config | changes}


def fsdp_of_the_host(staged: bool = True, **changes: Any) -> dict[str, Any]:
    """FSDP2 as Axolotl has patched it, layers recomputed; staged: base on meta but for rank 0."""
    from axolotl.monkeypatch.accelerate import fsdp2, fsdp2_checkpoint
    from axolotl.monkeypatch.peft.state_dict import patch_peft_checkpoint_wrapper_prefixes

    patch_peft_checkpoint_wrapper_prefixes()
    fsdp2.patch_accelerate_fsdp2()
    fsdp2_checkpoint.patch_fsdp2_full_checkpoint()
    return fsdp(
        state_dict_type=SHARDED,
        cpu_ram_efficient_loading=staged,
        activation_checkpointing=True,
        **changes,
    )


def zero(stage: int) -> dict[str, Any]:
    import deepspeed

    as_on_gpus()
    # Without it the first run compiles a shared-memory transport for a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    optimization = {"stage": stage}
    # Small parameters would otherwise stay whole.
    optimization |= {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    config = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": optimization,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    # As Axolotl has it under ZeRO-3.
    return {"deepspeed": config} | (REENTRANT if stage == 3 else {})


def save(trainer: Trainer, folder: Path) -> None:
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder))


def save_as_the_host(trainer: Trainer, folder: Path) -> None:
    from axolotl.integrations.expert_parallel.shard import save_fsdp2_lora_adapter

    assert save_fsdp2_lora_adapter(trainer.model, str(folder))


@dataclass(frozen=True)
class Run:
    """A training run of four steps of eight rows: two rows at a time, whatever the ranks."""

    ranks: int
    engine: Callable[[], dict[str, Any]]
    model: Callable[[Path], PeftModel] = fresh
    save: Callable[[Trainer, Path], None] = save
    resume: str | None = None
    trainer: type[Trainer] = Trainer

    def train(self, folder: Path, name: str) -> None:
        settings = {
            "output_dir": str(folder / name),
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 4 // self.ranks,
            "max_steps": 4,
            "save_steps": 2,
            "logging_steps": 1,
            "train_sampling_strategy": "sequential",
            "learning_rate": 1e-2,
            # A gradient's rounding moves a weight by at most learning_rate / epsilon times itself.
            "adam_epsilon": 1e-3,
            "max_grad_norm": 0.0,
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        args = TrainingArguments(**settings | self.engine())
        model = self.model(folder)
        if args.gradient_checkpointing:
            model.enable_input_require_grads()
        catch = FirstGradients()
        if args.deepspeed:
            _catch_before_the_engine_steps(catch)
        trainer = self.trainer(model, args, train_dataset=Rows(ROWS), callbacks=[catch])
        trainer.add_callback(AlphaLoraCallback())
        save_settings(trainer)
        trainer.train(resume_from_checkpoint=self.resume and str(folder / self.resume))
        logits = _logits(trainer)
        self.save(trainer, folder / name / "final")
        if dist.get_rank() == 0:
            torch.save(catch.gradients, folder / name / "gradients.pt")
            torch.save(logits, folder / name / "logits.pt")
            losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
            routers = [
                {key: value for key, value in entry.items() if key.startswith("alphalora/")}
                for entry in trainer.state.log_history
                if "loss" in entry
            ]
            report = {"losses": losses, "steps": catch.steps, "held": _held(model)}
            report["routers"], report["base"] = routers, _base_held(model)
            (folder / name / "report.json").write_text(json.dumps(report))


def sharded(resume: str | None = None, engine: Any = None, **asked: Any) -> Run:
    """FSDP2 on a quantised base: loaded, sharded and saved by Axolotl."""
    mixed_precision = "bf16" if asked.get("bf16") else None
    return Run(
        2,
        lambda: fsdp_of_the_host(False, mixed_precision=mixed_precision) | (engine or {}),
        by_the_host(fsdp_config=LAYERS, **asked),
        save_as_the_host,
        resume,
    )


RUNS = {
    "single": Run(1, ddp),
    "ddp": Run(2, ddp),
    "ddp-1-to-2": Run(2, ddp, resume="single/checkpoint-2"),
    "ddp-2-to-1": Run(1, ddp, resume="ddp/checkpoint-2"),
    "ddp-local-mean": Run(2, lambda: ddp(average_tokens_across_devices=False, **ONE_STEP)),
    "ddp-own-loss": Run(2, lambda: ddp(**ONE_STEP), trainer=SharedLoss),
    "ddp-balanced": Run(2, lambda: ddp(**REENTRANT, **ONE_STEP), balanced_globally),
    "nf4-single": Run(1, ddp, on_nf4),
    "nf4": Run(2, ddp, on_nf4),
    "nf4-fsdp": sharded(load_in_4bit=True, bnb_config_kwargs=BYTES),
    "nf4-fsdp-resumed": sharded(
        load_in_4bit=True, bnb_config_kwargs=BYTES, resume="nf4-fsdp/checkpoint-2"
    ),
    "nf4-bf16": Run(
        1, lambda: ddp(bf16=True, **ONE_STEP), by_the_host(load_in_4bit=True, bf16=True)
    ),
    "nf4-fsdp-bf16": sharded(load_in_4bit=True, bf16=True, engine=ONE_STEP),
    "nf4-fsdp-bf16-bytes": sharded(load_in_4bit=True, bf16=True, engine=ONE_STEP, base="nf4"),
    "int8-single": Run(1, ddp, by_the_host(load_in_8bit=True)),
    "int8-fsdp": sharded(load_in_8bit=True),
    "nf4-zero3": Run(2, lambda: zero(3), on_nf4),
    "fsdp": Run(2, fsdp),
    "fsdp-sharded": Run(2, lambda: fsdp(state_dict_type=SHARDED) | {"save_steps": 1}),
    "fsdp-2-to-1": Run(
        1, lambda: fsdp(state_dict_type=SHARDED), resume="fsdp-sharded/checkpoint-2"
    ),
    "fsdp-1-to-2": Run(2, lambda: fsdp(state_dict_type=SHARDED), resume="fsdp-2-to-1/checkpoint-3"),
    "fsdp-recomputed": Run(2, lambda: fsdp(activation_checkpointing=True) | ONE_STEP),
    "fsdp-balanced": Run(
        2, lambda: fsdp(activation_checkpointing=True) | ONE_STEP, balanced_globally
    ),
    "fsdp-host": Run(2, fsdp_of_the_host, on_meta_but_for_rank_0, save_as_the_host),
    "fsdp-host-resumed": Run(
        2,
        fsdp_of_the_host,
        on_meta_but_for_rank_0,
        save_as_the_host,
        resume="fsdp-host/checkpoint-2",
    ),
    "zero1": Run(2, lambda: zero(1)),
    "zero2": Run(2, lambda: zero(2)),
    "zero3": Run(2, lambda: zero(3), loaded),
    "zero3-resumed": Run(2, lambda: zero(3), loaded, resume="zero3/checkpoint-2"),
    "cut-single": Run(1, ddp, cut),
    "cut-ddp": Run(2, ddp, cut),
    "cut-fsdp": Run(2, fsdp, cut),
    "cut-zero3": Run(2, lambda: zero(3), partial(loaded, start="start-cut")),
}


def _catch_before_the_engine_steps(catch: FirstGradients) -> None:
    from deepspeed import DeepSpeedEngine
    from deepspeed.utils import safe_get_full_grad

    step = DeepSpeedEngine.step

    def caught(engine, *args, **kwargs):
        if engine.is_gradient_accumulation_boundary():
            catch.take(engine.module, safe_get_full_grad)
        return step(engine, *args, **kwargs)

    DeepSpeedEngine.step = caught


def _held(model: PeftModel) -> int:
    """How many elements of the adapter this rank keeps between its forwards."""
    return sum(_part(p).numel() for p in model.parameters() if p.requires_grad)


def _base_held(model: PeftModel) -> dict[str, int]:
    """The same for the base's linear layers: bytes, by the class that the weights are of."""
    held: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if "_proj" in name and not parameter.requires_grad:
            part = _part(parameter)
            kind = type(part).__name__
            held[kind] = held.get(kind, 0) + part.numel() * part.element_size()
    return held


def _part(parameter: torch.Tensor) -> torch.Tensor:
    if isinstance(parameter, DTensor):
        return parameter._local_tensor  # to_local() forgets the class
    return getattr(parameter, "ds_tensor", parameter)


@torch.no_grad()
def _logits(trainer: Trainer) -> torch.Tensor:
    batch = stack(ROWS[:2])
    del batch["labels"]
    trainer.model_wrapped.eval()
    return trainer.model_wrapped(**batch).logits


def make(folder: Path) -> None:
    """The base model, also quantised, and the adapter that every run starts with."""
    tiny_llama().save_pretrained(folder / "base")
    config = BitsAndBytesConfig(**NF4 | BYTES | {"bnb_4bit_compute_dtype": torch.bfloat16})
    LlamaForCausalLM.from_pretrained(
        folder / "base", quantization_config=config, dtype=torch.bfloat16
    ).save_pretrained(folder / "nf4")
    fresh(folder).save_pretrained(folder / "start")
    cut(folder).save_pretrained(folder / "start-cut")


def main(folder: Path) -> None:
    transformers.logging.set_verbosity_error()
    for name in ("deepspeed", "axolotl.loaders.model"):  # once for all runs
        importlib.import_module(name)
    gc.freeze()  # what is imported need not be searched for garbage in every run
    in_a_world(1, folder / "store", lambda: make(folder), folder / "error.txt")
    for name, run in RUNS.items():
        work = folder / name
        in_a_world(
            run.ranks,
            folder / f"store-{name}",
            lambda run=run, name=name: run.train(folder, name),
            work / "error.txt",
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
