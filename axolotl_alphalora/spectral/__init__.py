"""Spectral quality of weight matrices: where weights come from, spectra, power laws, scores."""

from ..settings import AGGREGATES, ESTIMATORS, MatrixQuality, QualitySettings
from .cache import Cache, default_cache
from .checkpoint import CheckpointWeights, MissingTensor
from .estimators import fit_power_law
from .live import LiveWeights, LoadedWeights, WeightSource
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
from .power_law import PowerLawFit
from .reading import Spectra, read_spectra
from .scores import interval, unit_scores
from .spectrum import pool, spectra, spectrum

__all__ = [
    "AGGREGATES",
    "ESTIMATORS",
    "BaseModel",
    "Cache",
    "CheckpointWeights",
    "LiveWeights",
    "LoadedWeights",
    "MatrixQuality",
    "Measurement",
    "MissingTensor",
    "PowerLawFit",
    "QualitySettings",
    "Spectra",
    "UnreadableCheckpoint",
    "WeightSource",
    "assess",
    "check_model_files",
    "default_cache",
    "fit_power_law",
    "interval",
    "measure",
    "pool",
    "read_spectra",
    "resampled_scores",
    "spectra",
    "spectrum",
    "unit_intervals",
    "unit_reliability",
    "unit_scores",
]
