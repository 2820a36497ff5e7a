"""A second Axolotl plugin for the tests: writes down what the host has loaded."""

import json
import os
from collections import Counter

from axolotl.integrations.base import BasePlugin


class SpyPlugin(BasePlugin):
    """Dumps classes and dtypes of the loaded model to `spy.json` in the working directory."""

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
