"""The load-balancing loss: its gradient against a plain reference, everywhere it could get lost."""

import copy
import json

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from axolotl_alphalora.adapter import AlphaLoraLayer, find_balancer
from helpers.balancing import (
    CHECKPOINTING,
    adapted,
    assert_same,
    gradients,
    reference_aux,
    reference_gradients,
    switch_checkpointing,
)


@pytest.mark.parametrize("mode", CHECKPOINTING)
def test_gradient_equals_the_reference_under_checkpointing(tiny_llama, batch, mode):
    model = adapted(tiny_llama)
    switch_checkpointing(model, mode)
    model.train()
    model(**batch).loss.backward()
    want = reference_gradients(tiny_llama, [batch], [1.0])
    assert_same(gradients(model), want)
    without = adapted(tiny_llama, coefficient=0.0)
    without.train()
    without(**batch).loss.backward()
    router = "base_model.model.model.layers.1.mlp.down_proj.alphalora_router.default"
    change = (want[router] - gradients(without)[router]).abs().max()
    assert change > 1e-2 * want[router].abs().max(), "the loss must matter for this test to"


@pytest.mark.parametrize("mode", CHECKPOINTING)
def test_a_loss_scale_is_followed(tiny_llama, batch, mode):
    model = adapted(tiny_llama)
    switch_checkpointing(model, mode)
    model.train()
    (model(**batch).loss * 1024).backward()
    want = reference_gradients(tiny_llama, [batch], [1.0], loss_scale=1024)
    assert_same(gradients(model), want)


@pytest.mark.parametrize("mode", CHECKPOINTING)
def test_a_reference_pass_before_the_backward_changes_nothing(tiny_llama, batch, mode):
    model = adapted(tiny_llama)
    switch_checkpointing(model, mode)
    model.train()
    loss = model(**batch).loss
    other = {key: value[:1, :7] for key, value in batch.items()}
    with torch.no_grad(), model.disable_adapter():
        model(**other)
    model.eval()
    with torch.no_grad():
        model(**other)
    model.train()
    loss.backward()
    assert_same(gradients(model), reference_gradients(tiny_llama, [batch], [1.0]))


def two_passes(model, batch, order):
    """Two training passes over other rows, of another length, before any backward pass."""
    shorter = {key: value[:2, :9].flip(0) for key, value in batch.items()}
    first = model(**batch, num_items_in_batch=torch.tensor(40))
    second = model(**shorter, num_items_in_batch=torch.tensor(40))
    if order == "one backward":
        distance = (first.logits[:2, 2] - second.logits[:, 2]).square().mean()
        (first.loss + 3 * second.loss + distance).backward()
    else:
        for out in (first, second) if order == "first to last" else (second, first):
            out.loss.backward()


@pytest.mark.works("Memory and speed", "gradient checkpointing, several passes before one backward")
@pytest.mark.parametrize("order", ["one backward", "first to last", "last to first"])
@pytest.mark.parametrize("mode", CHECKPOINTING)
def test_training_passes_before_one_backward_each_keep_their_own_padding(
    tiny_llama, batch, mode, order
):
    plain, model = adapted(tiny_llama).train(), adapted(tiny_llama).train()
    two_passes(plain, batch, order)
    switch_checkpointing(model, mode)
    two_passes(model, batch, order)
    assert_same(gradients(model), gradients(plain))


def test_one_backward_of_two_passes_is_the_reference_s(tiny_llama, batch):
    model, other = adapted(tiny_llama).train(), {k: v.flip(1) for k, v in batch.items()}
    switch_checkpointing(model, "non-reentrant")
    (model(**batch).loss + 2 * model(**other).loss).backward()
    parts = [reference_gradients(tiny_llama, [one], [1.0]) for one in (batch, other)]
    assert_same(gradients(model), {n: parts[0][n] + 2 * parts[1][n] for n in parts[0]})


@pytest.mark.parametrize("mode", ["reentrant", "non-reentrant"])
def test_a_whole_call_that_is_checkpointed_keeps_the_loss_s_scale(tiny_llama, batch, mode):
    found = []
    for how in (None, mode):
        model = adapted(tiny_llama).train()
        embedded = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
        rest = {key: batch[key] for key in ("attention_mask", "labels")}

        def call(embedded, model=model, rest=rest):
            return model(inputs_embeds=embedded, **rest).loss

        if how is None:
            loss = call(embedded)
        else:
            loss = checkpoint(call, embedded, use_reentrant=CHECKPOINTING[how])
        (loss / 4).backward()
        found.append((gradients(model), find_balancer(model).pop("train")))
    assert_same(found[1][0], found[0][0])
    # Under reentrant checkpointing the first call has no gradients, and counts for nothing.
    if mode == "non-reentrant":
        assert found[1][1] == pytest.approx(found[0][1])


@pytest.mark.parametrize("first", ["labels", "own loss"])
def test_a_pass_with_its_own_loss_does_not_take_the_scale_of_one_with_labels(
    tiny_llama, batch, first
):
    """Contrastive losses beside a language model's: each in its own measure, in any order."""
    unlabelled = {key: batch[key] for key in ("input_ids", "attention_mask")}
    model, parts = adapted(tiny_llama).train(), []
    for one in ("labels", "own loss") if first == "labels" else ("own loss", "labels"):
        if one == "labels":
            parts.append(0.1 * model(**batch).loss)
        else:
            parts.append(model(**unlabelled).logits.square().mean())
    find_balancer(model).scale.default = 0.5
    sum(parts).backward()

    alone = adapted(tiny_llama).train()
    find_balancer(alone).scale.default = 0.5
    (0.1 * alone(**batch).loss).backward()
    alone(**unlabelled).logits.square().mean().backward()
    assert_same(gradients(model), gradients(alone))


def test_a_recomputation_of_a_pass_too_long_ago_is_told(tiny_llama, batch, monkeypatch):
    monkeypatch.setattr("axolotl_alphalora.adapter.batch.PASSES", 1)
    model = adapted(tiny_llama).train()
    switch_checkpointing(model, "non-reentrant")
    total = model(**batch).loss + model(**batch).loss
    with pytest.warns(UserWarning, match="belongs to none of the last 1 training passes"):
        total.backward()


@pytest.mark.parametrize("mode", CHECKPOINTING)
def test_a_backbone_that_is_called_without_its_head_gives_the_same_balance(tiny_llama, batch, mode):
    """Trainers do that to project the hidden states in parts."""
    found = []
    for way in ("model", "backbone"):
        model = adapted(tiny_llama).train()
        switch_checkpointing(model, mode)
        find_balancer(model).scale.default = 0.5
        base = model.get_base_model()
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        if way == "model":
            logits = base(**inputs).logits
        else:
            logits = base.lm_head(base.model(inputs["input_ids"], inputs["attention_mask"])[0])
        logits.square().mean().backward()
        found.append((gradients(model), find_balancer(model).pop("train")))
    assert_same(found[1][0], found[0][0])
    assert found[1][1] == pytest.approx(found[0][1]) and found[0][1] > 2 - 1e-5


def test_layers_that_are_trained_around_the_model_s_forward_are_told(tiny_llama):
    model = adapted(tiny_llama).train()
    with pytest.warns(UserWarning, match="go around the forward of the base model"):
        model.get_base_model().model.layers[1].mlp(torch.randn(1, 4, 64)).sum().backward()


def test_a_failed_forward_leaves_the_next_one_alone(tiny_llama, batch):
    model = adapted(tiny_llama)
    model.train()
    with pytest.raises(IndexError):
        model(**(batch | {"input_ids": batch["input_ids"] + 1000}))
    model(**batch).loss.backward()
    assert_same(gradients(model), reference_gradients(tiny_llama, [batch], [1.0]))


def test_a_batch_without_targets_has_no_weight_in_the_log(tiny_llama, batch):
    model = adapted(tiny_llama)
    model.train()
    empty = batch | {"labels": torch.full_like(batch["labels"], -100)}
    model(**empty, num_items_in_batch=torch.tensor(0))
    assert find_balancer(model).pop("train") is None
    model(**batch)
    assert find_balancer(model).pop("train") >= 2 - 1e-5


def test_a_loss_in_place_multiplied_as_the_trainer_does(tiny_llama, batch):
    model = adapted(tiny_llama)
    model.train()
    loss = model(**batch).loss
    loss *= 2
    loss.backward()
    assert_same(gradients(model), reference_gradients(tiny_llama, [batch], [1.0], loss_scale=2))


def test_a_tuple_output_carries_the_probe_too(tiny_llama, batch):
    model = adapted(tiny_llama)
    model.train()
    (model(**batch, return_dict=False)[0] * 8).backward()
    assert_same(gradients(model), reference_gradients(tiny_llama, [batch], [1.0], loss_scale=8))


def test_a_packed_batch_has_no_mask_and_its_padding_still_does_not_count(tiny_llama, batch):
    # Token 5 pads; within a row, and as a trained end of text, it is an ordinary token.
    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
    ids = ids.masked_fill(mask == 0, 5)
    ids[:, 3] = 5
    ids[0, -1] = 5
    positions = torch.arange(12).expand(3, 12)
    model = adapted(tiny_llama)
    model.get_base_model().config.pad_token_id = 5
    model.train()
    model(input_ids=ids, labels=labels, position_ids=positions).loss.backward()
    packed = find_balancer(model).pop("train")
    model(input_ids=ids, labels=labels, attention_mask=mask)
    masked = find_balancer(model).pop("train")
    model(input_ids=ids, labels=labels, attention_mask=torch.ones_like(mask))
    unmasked = find_balancer(model).pop("train")
    # Right padding cannot be seen from the left, so the two differ by rounding alone.
    assert packed == pytest.approx(masked, rel=1e-5)
    assert abs(unmasked - masked) > 1e-3


def test_sequence_numbers_in_the_mask_of_a_packed_batch_are_not_padding(tiny_llama, batch):
    # A mask of zeros and twos gives the same attention as one of ones, but for its own sums.
    model = adapted(tiny_llama).train()
    model(**batch)
    expected = find_balancer(model).pop("train")
    numbers = batch["attention_mask"] * torch.tensor([2] * 12)
    model(**(batch | {"attention_mask": numbers}))
    assert find_balancer(model).pop("train") == pytest.approx(expected, rel=1e-5)


def test_a_loss_computed_outside_counts_with_the_default_scale(tiny_llama, batch):
    model = adapted(tiny_llama)
    model.train()
    balancer = find_balancer(model)
    balancer.scale.recorded = torch.tensor(77.0)
    balancer.scale.default = 0.25
    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
    logits = model(input_ids=ids, attention_mask=mask).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, 97), labels[:, 1:].reshape(-1), ignore_index=-100
    )
    (loss * 0.25).backward()
    assert_same(gradients(model), reference_gradients(tiny_llama, [batch], [1.0], loss_scale=0.25))


def test_the_reported_losses_do_not_contain_it(tiny_llama, batch):
    with_loss, without = adapted(tiny_llama, coefficient=10.0), adapted(tiny_llama, 0.0)
    for training in (True, False):
        with_loss.train(training)
        without.train(training)
        torch.testing.assert_close(with_loss(**batch).loss, without(**batch).loss, rtol=0, atol=0)


def test_values_for_the_log_equal_the_reference_for_training_and_evaluation_apart(
    tiny_llama, batch
):
    model = adapted(tiny_llama)
    switch_checkpointing(model, "reentrant")
    balancer = find_balancer(model)
    model.train()
    model(**batch).loss.backward()
    model.eval()
    half = {key: value[:1] for key, value in batch.items()}
    with torch.no_grad():
        model(**half)
        _, first = reference_aux(adapted(tiny_llama).train(), batch)
        _, second = reference_aux(adapted(tiny_llama).train(), half)
    assert balancer.pop("train") == pytest.approx(float(first), rel=1e-5)
    assert balancer.pop("eval") == pytest.approx(float(second), rel=1e-5)
    assert balancer.pop("train") is None


def test_generation_and_a_disabled_adapter_leave_no_trace(tiny_llama, batch):
    model = adapted(tiny_llama)
    balancer = find_balancer(model)
    model.eval()
    model.generate(input_ids=batch["input_ids"], max_new_tokens=3, do_sample=False)
    model.train()
    with model.disable_adapter():
        model(**batch)
    assert balancer.pop("train") is None
    assert balancer.pop("eval") is None


def test_a_coefficient_of_zero_still_reports_the_balance(tiny_llama, batch):
    model = adapted(tiny_llama, coefficient=0.0)
    balancer = find_balancer(model)
    model.train()
    model(**batch)
    assert balancer.pop("train") >= 2.0 - 1e-6


def test_a_copy_of_the_model_has_a_balancer_of_its_own(tiny_llama, batch):
    model = adapted(tiny_llama)
    twin = copy.deepcopy(model)
    for each in (model, twin):
        each.train()
    (model(**batch).loss * 64).backward()
    twin(**batch).loss.backward()
    assert_same(gradients(twin), reference_gradients(tiny_llama, [batch], [1.0]))
    layers = [m for m in twin.modules() if isinstance(m, AlphaLoraLayer)]
    assert len({layer.balancer.scale.key for layer in layers}) == 1
    assert json.dumps(twin.peft_config["default"].to_dict()["num_experts"])
