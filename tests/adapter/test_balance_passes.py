"""The load-balancing loss of passes that are not a language model's: losses, labels, calls."""

import copy
import warnings

import pytest
import torch
import transformers as hf
from peft import get_peft_model

from axolotl_alphalora.adapter import AlphaLoraConfig, find_balancer, find_routers
from axolotl_alphalora.adapter.fused import using
from axolotl_alphalora.adapter.usage import UsageMeter
from helpers import reference
from helpers.balancing import COEFFICIENT, assert_same, gradients, router_inputs
from helpers.models import tiny_llama, tiny_llama_config


class Wrapped(torch.nn.Module):
    """A model whose loss is that of each row, or one that comes in a dictionary."""

    def __init__(self, rows):
        super().__init__()
        self.model, self.rows = tiny_llama(), rows

    def forward(self, input_ids, labels):
        out = self.model(input_ids=input_ids, labels=labels)
        if not self.rows:
            return {"loss": out.loss, "logits": out.logits}
        losses = torch.nn.functional.cross_entropy(
            out.logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none"
        )
        out["loss"] = losses.mean(1)
        return out


def adapted(model, coefficient=COEFFICIENT, **config):
    torch.manual_seed(3)
    settings = {"r": 4, "num_experts": 3, "init_weights": False, "target_modules": ["q_proj"]}
    settings |= {"aux_loss_coef": coefficient} | config
    return get_peft_model(copy.deepcopy(model), AlphaLoraConfig(**settings)).train()


def balance_alone(model, backward, **config):
    """The gradient of the load-balancing loss, once `backward` has been called on the model."""
    found = []
    for coefficient in (COEFFICIENT, 0.0):
        one = adapted(model, coefficient, **config)
        backward(one)
        found.append(gradients(one))
    return {name: found[0][name] - found[1][name] for name in found[0]}


def test_a_loss_in_a_dictionary_tells_what_it_counts(batch):
    call = {key: batch[key] for key in ("input_ids", "labels")}
    model = Wrapped(rows=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = balance_alone(model, lambda one: (one(**call)["loss"] / 4).backward())
    want = balance_alone(model, lambda one: one(**call)["loss"].backward())
    assert_same(got, {name: value / 4 for name, value in want.items()})


def test_a_loss_of_each_row_tells_no_scale(batch):
    call = {"input_ids": batch["input_ids"], "labels": batch["input_ids"]}

    def backward(one):
        one(**call).loss.mean().backward()

    with pytest.warns(UserWarning, match="the loss is not computed by the model"):
        whole = balance_alone(Wrapped(rows=True), backward)

    def in_a_loop(one):
        find_balancer(one).scale.default = 0.5
        backward(one)

    halved = balance_alone(Wrapped(rows=True), in_a_loop)
    assert_same(halved, {name: value / 2 for name, value in whole.items()})


def test_a_loss_of_one_row_tells_its_scale(batch):
    call = {"input_ids": batch["input_ids"][:1], "labels": batch["input_ids"][:1]}
    found = []
    for parts in (1, 4):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = balance_alone(
                Wrapped(rows=True), lambda one, n=parts: (one(**call).loss / n).sum().backward()
            )
        found.append({name: value * parts for name, value in got.items()})
    assert_same(*found)


SPANS = {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([4, 5, 6])}


def question_answering():
    return hf.LlamaForQuestionAnswering(tiny_llama_config()), SPANS


def clip():
    sides = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    sides |= {"num_attention_heads": 4, "projection_dim": 16}
    config = hf.CLIPConfig(
        text_config=sides | {"vocab_size": 97},
        vision_config=sides | {"image_size": 8, "patch_size": 4},
        projection_dim=16,
    )
    return hf.CLIPModel(config), {"pixel_values": torch.randn(3, 3, 8, 8), "return_loss": True}


@pytest.mark.works("Trainers", "losses of other labels", "question answering, contrastive pairs")
@pytest.mark.parametrize("make", [question_answering, clip])
def test_losses_that_are_not_of_labels_tell_what_they_count_too(batch, make):
    torch.manual_seed(0)
    model, call = make()
    call = call | {"input_ids": batch["input_ids"]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = balance_alone(model, lambda one: (one(**call).loss / 4).backward())
    want = balance_alone(model, lambda one: one(**call).loss.backward())
    assert_same(got, {name: value / 4 for name, value in want.items()})
    evaluated = adapted(model).eval()
    with torch.no_grad():
        evaluated(**call)
    assert find_balancer(evaluated).pop("eval") >= 1 - 1e-5


@pytest.mark.parametrize("router_rank", [None, 2])
@pytest.mark.parametrize("fused", [True, False])
def test_a_frozen_router_balances_nothing(batch, fused, router_rank):
    def build(coefficient):
        """Two active adapters; the balance of the second would reach the first through x."""
        settings = {"target_modules": ["q_proj", "down_proj"], "router_rank": router_rank}
        model = adapted(tiny_llama(), 0.0, **settings)
        torch.manual_seed(4)
        settings |= {"r": 4, "num_experts": 3, "init_weights": False}
        model.add_adapter("other", AlphaLoraConfig(aux_loss_coef=coefficient, **settings))
        model.base_model.set_adapter(["default", "other"])
        model.set_requires_grad("other", requires_grad=False)
        return model

    found = []
    for coefficient in (COEFFICIENT, 0.0):
        model = build(coefficient)
        with using(function=fused):
            model(**batch).loss.backward()
        found.append(gradients(model))
    assert_same(*found)


BERT = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
BERT |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def albert():
    """Four calls of one layer."""
    config = hf.AlbertConfig(**BERT, embedding_size=16, num_hidden_layers=4, num_hidden_groups=1)
    return hf.AlbertForMaskedLM(config), "query", True


def chunked():
    """Three calls, each of four positions of every row, padding or not."""
    config = hf.BertConfig(**BERT, num_hidden_layers=1, chunk_size_feed_forward=4)
    return hf.BertForMaskedLM(config), "intermediate.dense", False


@pytest.mark.parametrize("make", [albert, chunked])
def test_a_layer_that_runs_several_times_counts_in_every_call(batch, make):
    torch.manual_seed(0)
    base, target, masked = make()
    plain = adapted(base, 0.0, target_modules=[target])
    with router_inputs(plain) as seen:
        loss = plain(**batch).loss
    masks = [batch["attention_mask"] if masked else torch.ones(x.shape[:2]) for _, x in seen]
    aux = sum(
        reference.load_balancing(x, layer.alphalora_router["default"], None, top_k=2, mask=mask)
        for (layer, x), mask in zip(seen, masks, strict=True)
    )
    (loss + COEFFICIENT * aux).backward()

    model = adapted(base, target_modules=[target])
    balancer = find_balancer(model)
    meter = balancer.usage["train"] = UsageMeter()
    with pytest.warns(UserWarning, match=rf"{target} ran {len(seen)} times in one forward pass"):
        model(**batch).loss.backward()
    assert len(seen) > 2
    assert_same(gradients(model), gradients(plain))
    assert balancer.pop("train") == pytest.approx(float(aux), rel=1e-5)
    (usage,) = meter.pop(find_routers(model)).values()
    assert usage.tokens == sum(int(mask.sum()) for mask in masks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**batch).loss.backward()
