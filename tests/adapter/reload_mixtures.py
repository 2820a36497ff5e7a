"""A fresh process: opens saved adapters with plain PEFT; prints the largest error of each."""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import axolotl_alphalora  # noqa: F401

folder = Path(sys.argv[1])
ids = torch.load(folder / "ids.pt")
errors = {}
for adapter in sorted(folder.glob("adapter-*")):
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    model = PeftModel.from_pretrained(base, adapter).eval()
    with torch.no_grad():
        logits = model(ids).logits
    errors[adapter.name] = float((logits - torch.load(adapter / "logits.pt")).abs().max())
print(json.dumps(errors))
