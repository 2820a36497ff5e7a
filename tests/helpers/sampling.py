"""Tiny models and samples for what is measured on them, and weight gradients by autograd."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from axolotl_alphalora.samples import Sample

VOCABULARY = 48


class Toy(nn.Module):
    """An embedding, linear layers run by ``body``, and a loss; called as transformers' models are.

    ``body`` takes the layers and the embedded tokens, and returns what the head reads.
    """

    def __init__(self, body, layers=2, width=8):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.body = body
        self.scale = 1.0

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, labels=None):
        logits = self.head(self.body(self.layers, self.embed(input_ids)))
        if labels is None:
            return SimpleNamespace(loss=None)
        loss = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
        )
        return SimpleNamespace(loss=loss * self.scale)


@pytest.fixture
def toy():
    def build(body, **sizes):
        torch.manual_seed(0)
        return Toy(body, **sizes)

    return build


def _llama():
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            attention_dropout=0.2,
        )
    )


def _gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    )


def _mixtral():
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
        )
    )


@pytest.fixture
def tiny():
    """A tiny model by name, seeded, in training mode, with larger weights than an untrained one."""

    def build(name):
        torch.manual_seed(0)
        model = {"llama": _llama, "gpt2": _gpt2, "mixtral": _mixtral}[name]()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4)
        return model.train()

    return build


@pytest.fixture
def linears():
    """The names of a model's linear layers, the output head left out."""

    def find(model):
        return [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and "head" not in name
        ]

    return find


@pytest.fixture
def sequence():
    """A sample of random tokens; the first third is not predicted."""

    def build(tokens, seed=0, task="data"):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, VOCABULARY, (1, tokens), generator=generator)
        labels = ids.clone()
        labels[:, : tokens // 3] = -100
        return Sample(task, {"input_ids": ids, "labels": labels})

    return build


@pytest.fixture
def by_autograd():
    """``||dL/dW||_F^2`` with weights that require gradients, in eval mode, on a copy."""

    def compute(model, names, loss):
        model = copy.deepcopy(model).eval()
        weights = [model.get_submodule(name).weight for name in names]
        for weight in weights:
            weight.requires_grad_(True)
        gradients = torch.autograd.grad(loss(model), weights, allow_unused=True)
        squares = [0.0 if g is None else g.double().square().sum().item() for g in gradients]
        return dict(zip(names, squares, strict=True))

    return compute
