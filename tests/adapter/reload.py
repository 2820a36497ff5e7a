"""A fresh process: every way to open a saved adapter; prints the largest error of the logits."""

import json
import sys
from pathlib import Path

import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import axolotl_alphalora  # noqa: F401

folder = Path(sys.argv[1])
ids = torch.load(folder / "ids.pt")
expected = torch.load(folder / "logits.pt")


def base(**options):
    return AutoModelForCausalLM.from_pretrained(folder / "base", **options)


def through_transformers():
    model = base()
    model.load_adapter(str(folder / "adapter-float"))
    return model


def quantised(**bits):
    return base(quantization_config=BitsAndBytesConfig(**bits), dtype=torch.float32)


WAYS = {
    "PeftModel": lambda: PeftModel.from_pretrained(base(), folder / "adapter-float"),
    "low_cpu_mem_usage": lambda: PeftModel.from_pretrained(
        base(), folder / "adapter-float", low_cpu_mem_usage=True
    ),
    "AutoPeftModelForCausalLM": lambda: AutoPeftModelForCausalLM.from_pretrained(
        folder / "adapter-float"
    ),
    "AutoModelForCausalLM": lambda: AutoModelForCausalLM.from_pretrained(folder / "adapter-float"),
    "load_adapter": through_transformers,
    "4-bit": lambda: PeftModel.from_pretrained(
        quantised(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
        folder / "adapter-4-bit",
    ),
    "8-bit": lambda: PeftModel.from_pretrained(
        quantised(load_in_8bit=True), folder / "adapter-8-bit"
    ),
}

errors = {}
for name, open_model in WAYS.items():
    with torch.no_grad():
        logits = open_model().eval()(ids).logits
    errors[name] = float((logits - expected[name]).abs().max())
print(json.dumps(errors))
