"""Values copied from the hosts, because asking for them would import more than they are worth.

Imports nothing. `tests/test_contracts.py` compares each with the host's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IGNORED = -100
"""torch: the label of a token that is not to be predicted, `ignore_index` of its cross-entropy."""

CHECKPOINT_WRAPPER = "_checkpoint_wrapped_module."
"""torch: what its wrapper around a recomputed module adds to the names inside."""

COMPILE_WRAPPER = "_orig_mod."
"""torch: the same for `torch.compile`'s."""

CLASSIFIER_HEADS, SPAN_HEADS = ("classifier", "score"), ("qa_outputs",)
"""PEFT: what it adds to `modules_to_save` for classification, and for question answering."""

QUANTISATION_PACKAGES: Mapping[str, str] = {
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
    "hqq": "hqq",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
}
"""transformers: methods of quantised checkpoints whose layers can be read and carry experts, each
with the package that transformers reads it with."""

DATA_FILES = "_data_files"
"""datasets: the key of a saved data set's `state.json` that lists its files."""

NF4: Mapping[str, Any] = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}
"""Axolotl: the arguments of `BitsAndBytesConfig` that make a 4-bit base of its `qlora`."""

LORA_ALPHA = 8
"""PEFT: the `lora_alpha` of a `LoraConfig` that names none."""

OPTIMIZER = "adamw_torch_fused"
"""Axolotl: the optimizer of a YAML that names none."""

OUTPUT_DIR = "./model-out"
"""Axolotl: where a run's output goes if the YAML does not say."""

LORA_KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
"""Axolotl: the switches of its fused kernels for LoRA; where none is set it switches all on."""

SCHEDULER_FILE = "scheduler.pt"
"""transformers: what a checkpoint keeps of the learning rates."""

TRL_CONSOLE = "RichProgressCallback"
"""TRL: the callback that writes a trainer's numbers to a console."""

TRL_REFERENCE, TRL_TRAINED = "ref", "default"
"""TRL: the frozen adapter that it adds to an adapted model, and the one whose values that gets."""
