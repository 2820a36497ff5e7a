"""A trained adapter opens in a new process, by every way that PEFT and transformers have."""

import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from axolotl_alphalora.adapter import AlphaLoraConfig
from helpers.models import tiny_llama

FLOAT = ("PeftModel", "low_cpu_mem_usage", "AutoPeftModelForCausalLM")
FLOAT += ("AutoModelForCausalLM", "load_adapter")

BASES = {
    "float": {},
    "4-bit": {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32},
    "8-bit": {"load_in_8bit": True},
}


def train(model, ids):
    """Three steps, so that every tensor of the adapter has moved."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        return model(ids).logits


@pytest.fixture(scope="module")
def errors(tmp_path_factory, fresh_process):
    folder = tmp_path_factory.mktemp("reload")
    tiny_llama().save_pretrained(folder / "base")
    ids = torch.randint(1, 97, (2, 9))
    expected = {}
    for name, options in BASES.items():
        quantisation = {"quantization_config": BitsAndBytesConfig(**options)} if options else {}
        base = AutoModelForCausalLM.from_pretrained(
            folder / "base", dtype=torch.float32, **quantisation
        )
        if options:
            base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        config = AlphaLoraConfig(
            r=4,
            num_experts=3,
            rank_pattern={"model.layers.1.mlp.up_proj": 5},
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(base, config)
        expected[name] = train(model, ids)
        model.save_pretrained(folder / f"adapter-{name}")
    expected |= dict.fromkeys(FLOAT, expected["float"])
    torch.save(ids, folder / "ids.pt")
    torch.save(expected, folder / "logits.pt")
    done = fresh_process(Path(__file__).with_name("reload.py"), folder)
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("way", [*FLOAT, "4-bit", "8-bit"])
def test_logits_are_those_of_the_trained_model(errors, way):
    assert errors[way] == 0.0
