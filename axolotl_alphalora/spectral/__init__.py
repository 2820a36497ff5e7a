"""Spectral quality of weight matrices: where weights come from, spectra, power laws, scores."""

from ..settings import AGGREGATES, ESTIMATORS, MatrixQuality, QualitySettings
from .aggregate import unit_scores
from .cache import Cache, default_cache
from .checkpoint import CheckpointWeights, MissingTensor
from .confidence import interval
from .files import UnreadableCheckpoint, check_model_files
from .loaded import LoadedWeights
from .measure import (
    Measurement,
    measure,
    resampled_scores,
    trust,
    unit_intervals,
)
from .model import BaseModel
from .power_law import PowerLawFit, fit_power_law
from .quality import assess
from .reading import Spectra, read_spectra
from .spectrum import significant, spectra, spectrum
from .weights import LiveWeights, WeightSource

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
    "read_spectra",
    "resampled_scores",
    "significant",
    "spectra",
    "spectrum",
    "trust",
    "unit_intervals",
    "unit_scores",
]
