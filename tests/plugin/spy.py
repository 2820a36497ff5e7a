"""A second Axolotl plugin for the tests: writes down what the host has loaded and what it runs."""

import json
import os
from collections import Counter

from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback


class SpyPlugin(BasePlugin):
    """Dumps classes and dtypes of the loaded model to `spy.json`, the first step to `step.pt`."""

    def post_model_load(self, cfg, model):
        """After the adapter was added."""
        bases = Counter(
            type(m.base_layer).__name__ for m in model.modules() if hasattr(m, "base_layer")
        )
        facts = {
            "model": type(model).__name__,
            "bases": dict(bases),
            "trainable": sorted({str(p.dtype) for p in model.parameters() if p.requires_grad}),
            "norms": sorted({str(p.dtype) for n, p in model.named_parameters() if "norm" in n}),
            "checkpointing": bool(getattr(model, "is_gradient_checkpointing", False)),
        }
        with open(os.environ.get("SPY_FILE", "spy.json"), "w") as file:
            json.dump(facts, file)

    def add_callbacks_post_trainer(self, cfg, trainer):
        """After the host's own callbacks."""
        return [FirstStep(trainer)]


class FirstStep(TrainerCallback):
    """Saves `step.pt`: the forward passes of the first step, and the gradients they came to.

    `passes` holds the tensors that the base model was called with, in training and with gradients;
    `references` counts its calls in training without gradients; `start` the adapter before the
    step; `gradients` the trainable parameters' before it is taken; `groups` the learning rates and
    the parameters of the optimizer's groups.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.seen = {"passes": [], "references": 0}
        self.done = False

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Start listening."""
        self.seen["start"] = _trainable(model, lambda p: p.detach().clone())
        self.hook = model.get_base_model().register_forward_pre_hook(self.listen, with_kwargs=True)

    def listen(self, base, args, kwargs):
        """Note one call of the base model."""
        import torch

        if not (base.training and torch.is_grad_enabled()):
            self.seen["references"] += base.training
            return
        tensors = {k: v.detach().clone() for k, v in kwargs.items() if isinstance(v, torch.Tensor)}
        names = ("input_ids", "attention_mask")
        self.seen["passes"].append(tensors | dict(zip(names, args, strict=False)))

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        """Save what was seen, once."""
        import torch

        if self.done:
            return
        self.done = True
        self.hook.remove()
        names = {id(p): n for n, p in model.named_parameters()}
        self.seen["gradients"] = _trainable(model, lambda p: p.grad.clone())
        self.seen["groups"] = [
            {"lr": group["lr"], "names": [names[id(p)] for p in group["params"]]}
            for group in getattr(optimizer, "optimizer", optimizer).param_groups
        ]
        torch.save(self.seen, "step.pt")


def _trainable(model, what):
    return {n: what(p) for n, p in model.named_parameters() if p.requires_grad}
