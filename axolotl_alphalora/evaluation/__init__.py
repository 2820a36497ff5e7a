"""A trained adapter on data: samples, the model, what its routers decide. Never imports Axolotl."""

from .measure import (
    Divergence,
    Moments,
    calibrate,
    losses_by_task,
    measure_divergence,
    router_usage,
)
from .model import load_adapted, load_base, load_tokenizer
from .samples import prompt_text, read_rows

__all__ = [
    "Divergence",
    "Moments",
    "calibrate",
    "load_adapted",
    "load_base",
    "load_tokenizer",
    "losses_by_task",
    "measure_divergence",
    "prompt_text",
    "read_rows",
    "router_usage",
]
