"""A trained adapter on data: rows, the model, what its routers decide. Never imports Axolotl."""

from .calibration import Moments, calibrate
from .model import load_adapted, load_base, load_tokenizer
from .price import Price, measure_price
from .rows import read_rows
from .usage import router_usage

__all__ = [
    "Moments",
    "Price",
    "calibrate",
    "load_adapted",
    "load_base",
    "load_tokenizer",
    "measure_price",
    "read_rows",
    "router_usage",
]
