"""What the first step of a run should have given the routers, computed from its forward passes.

With B at zero the task gives a router no gradient, so all it has is the load-balancing loss's.
"""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import axolotl_alphalora.adapter  # noqa: F401
from axolotl_alphalora.blocks import block_name
from helpers.balancing import router_inputs


def seen(run) -> dict:
    """What the spy plugin wrote down."""
    return torch.load(run.folder / "step.pt")


def token_shares(passes, shift: int = 1) -> list[float]:
    """Each pass's share of the step's targets, as the HF Trainer weighs micro-batches."""
    counts = [int(p["labels"][:, shift:].ne(-100).sum()) for p in passes]
    return [count / sum(counts) for count in counts]


def real_tokens(one: dict, pad: int = 3) -> torch.Tensor:
    """Which positions of a pass are no padding, [B, S]; a packed batch's mask does not tell."""
    if "position_ids" not in one:
        return one["attention_mask"] == 1
    token = (one["input_ids"] != pad) | (one["labels"] != -100)
    last = [int(row.nonzero().max()) for row in token]
    return torch.stack([torch.arange(token.shape[1]) <= end for end in last])


def sequences(one: dict) -> list[torch.Tensor]:
    """The real tokens of a pass, one tensor for each sequence; packed rows are taken apart."""
    found = []
    for row, real in enumerate(real_tokens(one)):
        ids, starts = one["input_ids"][row][real], []
        if "position_ids" in one:
            starts = one["position_ids"][row][real].eq(0).nonzero().flatten().tolist()[1:]
        found += list(ids.tensor_split(starts))
    return found


def balance(model, one: dict, alone: bool = True) -> torch.Tensor:
    """The load-balancing loss of one pass: mean over a block's routers, summed over blocks.

    Sequences run one by one; with `alone` false as the batch that the host made of them.
    """
    tokens: dict = {}
    batches = [{"input_ids": ids[None]} for ids in sequences(one)]
    names = ("input_ids", "attention_mask", "position_ids")
    for batch in batches if alone else [{k: v for k, v in one.items() if k in names}]:
        with router_inputs(model) as inputs:
            model(**batch)
        for layer, x in inputs:
            tokens.setdefault(layer, []).append(x[0] if alone else x[real_tokens(one)])
    blocks: dict = {}
    for layer, parts in tokens.items():
        router = layer.alphalora_router["default"]
        p = torch.softmax(torch.cat(parts) @ router.T, -1)
        chosen = p.argsort(-1, descending=True)[:, : layer.top_k["default"]]
        share = torch.bincount(chosen.flatten(), minlength=len(router)) / chosen.numel()
        loss = len(router) * (share * p.mean(0)).sum()
        blocks.setdefault(block_name(layer.module_name), []).append(loss)
    return sum(sum(losses) / len(losses) for losses in blocks.values())


def assert_routers_got_the_balance(
    run, base: Path, coefficient: float, weights, alone: bool = True
) -> None:
    """Compare every router's gradient with that of `sum_i weight_i * coefficient * balance_i`."""
    step = seen(run)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), run.out, is_trainable=True
    )
    for layer in model.modules():
        if hasattr(layer, "aux_loss_coef"):
            layer.aux_loss_coef["default"] = 0.0
    _, unexpected = model.load_state_dict(
        {k: v for k, v in step["start"].items() if "alphalora_" in k}, strict=False
    )
    assert not unexpected
    losses = [balance(model, one, alone) for one in step["passes"]]
    total = sum(w * coefficient * loss for w, loss in zip(weights, losses, strict=True))
    total.backward()
    routers = {n: p for n, p in model.named_parameters() if "alphalora_router" in n}
    assert routers
    for name, router in routers.items():
        want, got = router.grad, step["gradients"][name]
        assert want.abs().max() > 1e-5, name
        torch.testing.assert_close(got, want, rtol=1e-3, atol=2e-4 * float(want.abs().max()))
