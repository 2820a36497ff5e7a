"""How much the loss on a task's own data changes with each weight matrix."""

from .measure import Sensitivity, measure_sensitivity
from .samples import Sample, share_out

__all__ = ["Sample", "Sensitivity", "measure_sensitivity", "share_out"]
