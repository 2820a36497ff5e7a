"""What the routers decide on samples, task by task, against a plain count."""

import pytest
import torch

from axolotl_alphalora.evaluation import calibrate, router_usage
from axolotl_alphalora.samples import Sample
from helpers.balancing import adapted, router_inputs
from helpers.mixtures import EVERYTHING


def samples():
    generator = torch.Generator().manual_seed(4)
    found = []
    for task, length in (("a", 9), ("b", 14), ("a", 5)):
        ids = torch.randint(1, 97, (1, length), generator=generator)
        found.append(Sample(task, {"input_ids": ids, "labels": ids}))
    return found


def plain_shares(model, rows):
    """Module name to the share of the slots that each expert gets."""
    tokens = {}
    for sample in rows:
        with router_inputs(model) as seen, torch.no_grad():
            model(**sample.inputs)
        for layer, x in seen:
            tokens.setdefault(layer.module_name, (layer, []))[1].append(x[0])
    shares = {}
    for name, (layer, parts) in tokens.items():
        router, k = layer.alphalora_router["default"], layer.top_k["default"]
        down = layer.part("alphalora_router_down", "default")
        slots = [0] * len(router)
        for token in torch.cat(parts):
            read = token if down is None else down @ token
            for expert in (router @ read).topk(k).indices.tolist():
                slots[expert] += 1
        shares[name] = [slot / sum(slots) for slot in slots]
    return shares


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_tasks_are_told_apart_and_make_up_the_whole(tiny_llama, options):
    model, rows = adapted(tiny_llama, **options).eval(), samples()
    seen = []
    usage = router_usage(model, rows, seen.append)
    assert list(usage) == ["all", "a", "b"] and len(seen) == 3
    for task, found in usage.items():
        chosen = [row for row in rows if task in ("all", row.task)]
        want = plain_shares(model, chosen)
        assert found.keys() == want.keys()
        for name, shares in want.items():
            assert list(found[name].token_share) == pytest.approx(shares, abs=1e-6)
            assert found[name].tokens == sum(row.inputs["input_ids"].numel() for row in chosen)


def test_calibration_counts_the_same_gates(tiny_llama):
    model, rows = adapted(tiny_llama).eval(), samples()
    usage, moments = router_usage(model, rows)["all"], calibrate(model, rows)
    assert moments.keys() == usage.keys()
    for name, found in moments.items():
        assert found.tokens == usage[name].tokens
        assert found.mean_gates.tolist() == pytest.approx(list(usage[name].mean_gates), abs=1e-6)


def test_one_task_is_no_task_and_its_name_may_not_be_all(tiny_llama):
    model, rows = adapted(tiny_llama), samples()
    assert list(router_usage(model, rows[1:2])) == ["all"]
    with pytest.raises(ValueError, match="a task is called 'all'"):
        router_usage(model, [Sample("all", rows[0].inputs)])
