"""Losses by task against the model's own loss, row by row."""

import pytest
import torch

from axolotl_alphalora.evaluation import losses_by_task
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
