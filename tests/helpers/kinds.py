"""Models with each kind of linear layer that can carry experts, for what PEFT promises."""

import copy
import functools
import tempfile
from dataclasses import dataclass

import bitsandbytes as bnb
import pytest
import torch
from peft import get_peft_model
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    TorchAoConfig,
)

from axolotl_alphalora.adapter import AlphaLoraConfig, AlphaLoraLayer
from helpers.models import tiny_llama

IDS = torch.tensor([[5, 6, 7, 8, 9, 3], [4, 3, 2, 1, 11, 12]])
X = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(2))


class Mlp(nn.Module):
    """A module that knows nothing of transformers: no config, no labels, a tensor comes out."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(64, 96), "down": nn.Linear(96, 64)}) for _ in range(2)
        )
        self.head = nn.Linear(64, 7)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer["down"](torch.relu(layer["up"](x)))
        return self.head(x)


@dataclass(frozen=True)
class Kind:
    """A kind of linear layer, in a model of two blocks."""

    targets: tuple[str, str] = ("q_proj", "down_proj")
    blocks: str = "layers"
    head: str = "lm_head"
    task: str | None = "CAUSAL_LM"
    backend: str | None = None


KINDS = {
    "linear": Kind(),
    "conv1d": Kind(("c_attn", "c_fc"), blocks="h"),
    "custom": Kind(("up", "down"), head="head", task=None),
    "4-bit": Kind(backend="bnb 4bit"),
    "8-bit": Kind(backend="bnb 8bit"),
    "torchao": Kind(backend="torchao"),
}
QUANTISED = ["4-bit", "8-bit", "torchao"]
DECODERS = ["linear", "conv1d", *QUANTISED]
every_kind = pytest.mark.parametrize("kind", KINDS)


def quantisation(kind, dtype):
    if kind == "torchao":
        return TorchAoConfig(Int8WeightOnlyConfig(version=2))
    if kind == "8-bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


@functools.cache
def built(kind, dtype):
    torch.manual_seed(0)
    if kind == "custom":
        return Mlp().to(dtype).eval()
    if kind == "conv1d":
        shape = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 97, "n_positions": 64}
        quiet = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        shape = GPT2Config(**shape, **quiet, bos_token_id=96, eos_token_id=96)
        return GPT2LMHeadModel(shape).to(dtype).eval()
    model = tiny_llama()
    if kind == "linear":
        return model.to(dtype).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, quantization_config=quantisation(kind, dtype)
        )
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # Some CPUs repack it in an eval forward, and round it when it is then saved.
            module.support_avx512bf16_for_cpu = False
    return model.eval()


def fresh(kind, dtype=torch.float32):
    """A copy of its own of the base model."""
    return copy.deepcopy(built(kind, dtype))


def config(kind, **changes):
    settings = {
        "r": 4,
        "num_experts": 3,
        "target_modules": list(KINDS[kind].targets),
        "init_weights": False,
        "task_type": KINDS[kind].task,
    }
    return AlphaLoraConfig(**(settings | changes))


def adapted(kind, seed=3, **changes):
    base = fresh(kind)
    torch.manual_seed(seed)
    return get_peft_model(base, config(kind, **changes))


def layers(model):
    return {m.module_name: m for m in model.modules() if isinstance(m, AlphaLoraLayer)}


def forward(model):
    """Output and loss of either sort of model, always for the same input."""
    if any(isinstance(m, Mlp) for m in model.modules()):
        out = model(X.to(next(model.parameters()).dtype))
        return out, out.float().square().mean()
    out = model(input_ids=IDS, labels=IDS)
    return out.logits, out.loss


@torch.no_grad()
def outputs(model):
    return forward(model.eval())[0]


def trainable(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def move(model):
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.1)


def assert_same(got, want, atol=0.0):
    torch.testing.assert_close(got, want, rtol=0, atol=atol)
