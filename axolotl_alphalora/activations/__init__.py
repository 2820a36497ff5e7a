"""How much of the variance of each layer's inputs few components explain."""

from .measure import ExplainedVariance, measure_explained_variance

__all__ = ["ExplainedVariance", "measure_explained_variance"]
