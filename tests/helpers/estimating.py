"""The estimators that need no optional package."""

from axolotl_alphalora.spectral.estimators import TABLE

OWN_ESTIMATORS = [name for name, estimator in TABLE.items() if estimator.package is None]
