"""How much the loss on a task's own data changes with each weight matrix."""

from .measure import Sensitivity, measure_sensitivity

__all__ = ["Sensitivity", "measure_sensitivity"]
