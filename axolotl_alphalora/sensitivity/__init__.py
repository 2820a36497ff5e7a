"""How much the loss on a task's own data changes with each weight matrix."""

from .measure import Sample, Sensitivity, measure_sensitivity, share_out

__all__ = ["Sample", "Sensitivity", "measure_sensitivity", "share_out"]
