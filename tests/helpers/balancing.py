"""Models, batches and the plain reference that the tests of the load-balancing loss share."""

import copy
from contextlib import contextmanager

import torch
from peft import get_peft_model
from transformers import Trainer, TrainerCallback

from axolotl_alphalora.adapter import AlphaLoraConfig, AlphaLoraLayer
from axolotl_alphalora.blocks import block_name
from helpers import reference

COEFFICIENT = 0.3


def adapted(model, coefficient=COEFFICIENT, **config):
    """The model with other counts in each block, one module left alone and one without router."""
    counts = {
        name: 2 + int(block_name(name).rpartition(".")[2])
        for name, module in model.named_modules()
        if name.endswith("_proj")
    }
    counts["model.layers.0.self_attn.k_proj"] = 0
    counts["model.layers.1.mlp.up_proj"] = 1
    torch.manual_seed(3)
    return get_peft_model(
        copy.deepcopy(model),
        AlphaLoraConfig(
            r=4,
            num_experts=counts,
            aux_loss_coef=coefficient,
            init_weights=False,
            task_type="CAUSAL_LM",
            **config,
        ),
    )


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


@contextmanager
def router_inputs(model):
    """Collects (layer, input with its graph) of every routed layer's forward."""
    seen = []
    hooks = [
        m.register_forward_pre_hook(lambda layer, args: seen.append((layer, args[0])))
        for m in model.modules()
        if isinstance(m, AlphaLoraLayer) and m.alphalora_router
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def reference_aux(model, batch):
    """Sum over blocks of the mean over the block's routers, computed token by token."""
    with router_inputs(model) as seen:
        out = model(**batch)
    blocks = {}
    for layer, x in seen:
        loss = reference.load_balancing(
            x,
            layer.alphalora_router["default"],
            layer.part("alphalora_router_down", "default"),
            top_k=layer.top_k["default"],
            mask=batch["attention_mask"],
        )
        blocks.setdefault(block_name(layer.module_name), []).append(loss)
    return out, sum(sum(losses) / len(losses) for losses in blocks.values())


def reference_gradients(model, batches, weights, loss_scale=1.0, **config):
    """Gradient of sum_i (loss_i + weight_i * c * aux_i), with our own loss switched off."""
    plain = adapted(model, coefficient=0.0, **config)
    plain.train()
    total = 0.0
    num_items = sum(int(b["labels"][:, 1:].ne(-100).sum()) for b in batches)
    for batch, weight in zip(batches, weights, strict=True):
        out, aux = reference_aux(plain, batch | {"num_items_in_batch": torch.tensor(num_items)})
        total = total + out.loss + weight * COEFFICIENT * aux
    (loss_scale * total).backward()
    return gradients(plain)


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name in want:
        scale = max(float(want[name].abs().max()), 1e-3)
        torch.testing.assert_close(
            got[name] / scale,
            want[name] / scale,
            rtol=0,
            atol=2e-5,
            msg=lambda m, n=name: f"{n}: {m}",
        )


CHECKPOINTING = {"none": None, "reentrant": True, "non-reentrant": False}


def switch_checkpointing(model, mode):
    if CHECKPOINTING[mode] is not None:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": CHECKPOINTING[mode]}
        )


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class CatchGradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = gradients(model)


def uneven_rows(count=8, length=14):
    generator = torch.Generator().manual_seed(5)
    rows = []
    for index in range(count):
        ids = torch.randint(1, 97, (length,), generator=generator)
        mask = torch.ones_like(ids)
        mask[length - index :] = 0
        labels = ids.masked_fill(mask == 0, -100)
        labels[: 1 + index // 3] = -100
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return rows


def stack(rows):
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


class SharedLoss(Trainer):
    """A trainer that gives the model the labels and the step's targets, and makes the loss itself.

    That is the model's own, which nobody differentiates.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross-entropy of the micro-batch as its share of the step's."""
        logits = model(**inputs, num_items_in_batch=num_items_in_batch).logits
        labels = inputs["labels"][:, 1:].flatten()
        total = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels, ignore_index=-100, reduction="sum"
        )
        # As the Trainer does: gradients are averaged over the processes, targets counted over them.
        return self.accelerator.num_processes * total / num_items_in_batch
