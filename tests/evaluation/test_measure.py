"""Losses by task against the model's own loss, row by row."""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.evaluation import (
    calibrate,
    losses_by_task,
    measure_divergence,
    router_usage,
)
from axolotl_alphalora.samples import Sample
from helpers.balancing import adapted


def samples():
    generator = torch.Generator().manual_seed(4)
    found = []
    for task, length, prompt in (("a", 9, 4), ("b", 14, 0), ("a", 5, 3)):
        ids = torch.randint(1, 97, (1, length), generator=generator)
        labels = ids.clone()
        labels[:, :prompt] = -100
        found.append(Sample(task, {"input_ids": ids, "labels": labels}))
    return found


def test_losses_are_summed_over_the_labelled_tokens_of_each_task(tiny_llama):
    model, seen = adapted(tiny_llama).train(), []
    found = losses_by_task(model, samples(), seen.append)
    want = {"a": [0.0, 0], "b": [0.0, 0]}
    for sample in samples():
        count = int(sample.inputs["labels"][0, 1:].ne(-100).sum())
        with torch.no_grad():
            loss = model(**sample.inputs).loss
        want[sample.task][0] += count * loss.item()
        want[sample.task][1] += count
    assert len(seen) == 3
    assert found.keys() == want.keys()
    for task, (loss, tokens) in found.items():
        assert tokens == want[task][1]
        assert loss == pytest.approx(want[task][0], rel=1e-5)
    with model.disable_adapter():
        assert losses_by_task(model, samples())["b"][0] != pytest.approx(found["b"][0], rel=1e-3)


def one(ids):
    ids = torch.tensor([ids])
    return [Sample("a", {"input_ids": ids, "labels": ids})]


@pytest.mark.parametrize(
    "measure",
    [losses_by_task, measure_divergence, calibrate, router_usage],
    ids=lambda f: f.__name__,
)
def test_why_a_model_cannot_read_a_row_is_said(measure):
    base = GPT2LMHeadModel(
        GPT2Config(vocab_size=97, n_positions=16, n_embd=32, n_layer=1, n_head=2)
    )
    config = {"r": 2, "num_experts": 2, "target_modules": ["c_attn"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(base, AlphaLoraConfig(**config))
    with pytest.raises(
        ValueError, match=r"has 17 tokens: its config allows for 16 .*--sequence-le"
    ):
        measure(model, one([1] * 17))
    with pytest.raises(
        ValueError, match="has 97 embeddings, and a row has the token 97: .*tokenizer"
    ):
        measure(model, one([1, 97]))


def test_what_fails_in_another_way_is_left_as_it_is(tiny_llama, monkeypatch):
    model = adapted(tiny_llama)
    monkeypatch.setattr(type(tiny_llama), "get_input_embeddings", lambda self: nn.ModuleList())
    model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("another one")))
    with pytest.raises(RuntimeError, match="another one"):
        losses_by_task(model, one([1, 2]))
