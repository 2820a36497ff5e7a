"""The quickstart's YAML: written with a comment for every option, read back as a user left it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from glob import glob
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..files import write_whole
from ..planning.keys import read_yaml
from .process import QuickstartError
from .rows import HELD_OUT_FILE, TRAIN_FILE

CONFIG_FILE = "config.yml"
ADAPTER_DIRECTORY = "adapter"
PREPARED_DIRECTORY = "prepared"
DEFAULT_STEPS = 40
SAVE_EVERY = 10

_SEAL = "\n# Seal: "
_TEMPLATE = """\
# AlphaLoRA with Axolotl: the run of the quickstart.
# It runs: axolotl train {config}
# After a change, run the quickstart again: it starts a new adapter where the change needs one.

base_model: {model}  # directory or hub id
plugins:
  - axolotl_alphalora.AlphaLoraPlugin  # brings `adapter: alphalora`

adapter: alphalora
lora_r: 8  # rank of one expert
lora_alpha: 16  # the experts' output is scaled by lora_alpha / lora_r
lora_dropout: 0.05  # dropout on the experts' input
lora_target_linear: true  # experts on every linear layer; or name layers in lora_target_modules
# load_in_4bit: true  # on a GPU: quantise the frozen base model, to fit a larger one

alphalora:
  allocation: alphalora  # how the experts are shared out: by the spectra of the blocks' weights
  experts_per_block: 5  # the mean; `axolotl alphalora plan` shows what each block gets
  top_k: 2  # experts that each token is sent to
  aux_loss_coef: 0.001  # weight of the loss that keeps the experts evenly used

datasets:
  - path: {train}  # JSON lines with instruction, input and output
    ds_type: json
    type: alpaca  # prompt format
# For the held-out loss while training, take out the # of these lines and of `eval_steps`.
# test_datasets:
#   - path: {held_out}
#     ds_type: json
#     split: train  # a JSON file has this one split only
#     type: alpaca
dataset_prepared_path: {prepared}  # tokenised rows; delete the folder after changing the data
output_dir: {output}  # the adapter and its checkpoints
dataset_num_proc: 1  # processes that tokenise; starting more takes longer than these rows do
train_on_inputs: false  # the loss counts answers only, not prompts

sequence_len: 256  # longer rows are dropped; memory grows with it
sample_packing: false  # on a GPU with flash attention: true puts several rows into one sequence
pad_to_sequence_len: false  # pad to the longest row of a batch only
micro_batch_size: 4  # rows per step; a GPU takes more
gradient_accumulation_steps: 1  # steps whose gradients are summed before an update

max_steps: {steps}  # length of the training; `--steps` of the quickstart
num_epochs: 100  # an upper limit, for max_steps decides
optimizer: adamw_torch
learning_rate: 0.001
lr_scheduler: cosine  # falls to zero at max_steps
warmup_steps: {warmup}  # the learning rate rises over these
weight_decay: 0.0
max_grad_norm: 1.0  # longer gradients are scaled down to this
seed: 42

bf16: false  # a CPU is faster in float32; on a GPU: true
fp16: false
tf32: false  # on an Ampere or later GPU: true
attn_implementation: sdpa  # on a GPU also: flash_attention_2
gradient_checkpointing: false  # true: less memory, more time

logging_steps: 1
# eval_steps: 10
save_steps: {save}  # a checkpoint to continue from
save_total_limit: 2  # older checkpoints are deleted
auto_resume_from_checkpoints: true  # continue from the last checkpoint in output_dir
"""


@dataclass(frozen=True)
class RunConfig:
    """What the quickstart needs to know of the YAML.

    Attributes:
        data: Files and directories on this machine that the datasets are read from.
        bits: What the base is quantised to: 4, 8, or 0 if it is not.
        edited: Whether it is not as it was written.
    """

    path: Path
    base_model: str
    output_dir: Path
    max_steps: int | None
    sequence_len: int
    data: tuple[Path, ...]
    bits: int
    edited: bool


def config_text(directory: Path, model: Path | str, steps: int) -> str:
    """Return the YAML; the directory is absolute, so that it works from anywhere."""
    names = {
        "model": model,
        "train": directory / TRAIN_FILE,
        "held_out": directory / HELD_OUT_FILE,
        "prepared": directory / PREPARED_DIRECTORY,
        "output": directory / ADAPTER_DIRECTORY,
    }
    text = _TEMPLATE.format(
        config=directory / CONFIG_FILE,
        steps=steps,
        warmup=min(5, steps // 5),
        save=min(SAVE_EVERY, steps),
        **{key: json.dumps(str(name), ensure_ascii=False) for key, name in names.items()},
    )
    return text + _seal(text)


def is_edited(path: Path) -> bool:
    """Tell whether the YAML exists and differs from what any run of the quickstart wrote."""
    if not path.exists():
        return False
    text, seal, rest = path.read_text(encoding="utf-8").rpartition(_SEAL)
    return seal + rest != _seal(text)


def write_config(directory: Path, model: Path | str, steps: int) -> RunConfig:
    """Write the YAML, unless a user edited the one that is there; return what it then says."""
    path = directory / CONFIG_FILE
    if not is_edited(path):
        write_whole(path, config_text(directory, model, steps))
    return read_config(path)


def read_config(path: Path) -> RunConfig:
    """Read a YAML; raises `QuickstartError` if it is none or lacks a value."""
    try:
        values = read_yaml(path)
        for key in ("base_model", "output_dir"):
            if not isinstance(values.get(key), str):
                raise ValueError(f"{path} has no `{key}`.")
        for key in ("max_steps", "sequence_len"):
            if not isinstance(values.get(key), int | None):
                raise ValueError(f"{path}: `{key}: {values[key]}` is not a number.")
    except ValueError as error:
        hint = "Correct it, or delete it to have it written anew."
        raise QuickstartError(f"{error} {hint}") from error
    return RunConfig(
        path=path,
        base_model=values["base_model"],
        output_dir=Path(values["output_dir"]).expanduser().absolute(),
        max_steps=values.get("max_steps"),
        sequence_len=values.get("sequence_len") or 2048,
        data=tuple(path for one in _named(values) for path in _there(one)),
        bits=4 if values.get("load_in_4bit") else 8 if values.get("load_in_8bit") else 0,
        edited=is_edited(path),
    )


def _named(values: Mapping[str, Any]) -> Iterator[Path]:
    """Where the datasets may be, if they are on this machine."""
    for key in ("datasets", "test_datasets"):
        for row in values.get(key) or ():
            given = row.get("data_files") if isinstance(row, dict) else None
            path = row.get("path") if isinstance(row, dict) else None
            for one in (path, *([given] if isinstance(given, str) else given or ())):
                if isinstance(one, str):
                    yield Path(one).expanduser().absolute()


def _there(path: Path) -> list[Path]:
    """What is there of a path or of a pattern."""
    if path.exists():
        return [path]
    return sorted(Path(found) for found in glob(str(path), recursive=True))


def _seal(text: str) -> str:
    note = "edit anything above; the quickstart keeps an edited file"
    return f"{_SEAL}{sha256(text.encode()).hexdigest()[:16]} ({note})\n"
