"""Spectral quality of weight matrices: where weights come from, spectra, power laws, scores."""

from .cache import Cache, default_cache
from .checkpoint import CheckpointWeights, MissingTensor
from .estimators import fit_power_law
from .live import LiveWeights, WeightSource
from .measure import (
    Measurement,
    assess,
    measure,
    resampled_scores,
    unit_intervals,
    unit_reliability,
)
from .model import BaseModel
from .model_files import UnreadableCheckpoint, check_model_files
from .reading import Spectra, read_spectra
from .scores import unit_scores
from .spectrum import spectra, spectrum

__all__ = [
    "BaseModel",
    "Cache",
    "CheckpointWeights",
    "LiveWeights",
    "Measurement",
    "MissingTensor",
    "Spectra",
    "UnreadableCheckpoint",
    "WeightSource",
    "assess",
    "check_model_files",
    "default_cache",
    "fit_power_law",
    "measure",
    "read_spectra",
    "resampled_scores",
    "spectra",
    "spectrum",
    "unit_intervals",
    "unit_reliability",
    "unit_scores",
]
