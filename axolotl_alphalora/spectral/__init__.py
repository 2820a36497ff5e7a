"""Spectral quality of weight matrices: where weights come from, spectra, power laws, scores."""

from axolotl_alphalora.settings import AGGREGATES, ESTIMATORS, MatrixQuality, QualitySettings
from axolotl_alphalora.spectral.aggregate import unit_scores
from axolotl_alphalora.spectral.cache import Cache, default_cache
from axolotl_alphalora.spectral.checkpoint import CheckpointWeights, MissingTensor
from axolotl_alphalora.spectral.confidence import interval
from axolotl_alphalora.spectral.files import UnreadableCheckpoint, check_model_files
from axolotl_alphalora.spectral.loaded import LoadedWeights
from axolotl_alphalora.spectral.measure import (
    Measurement,
    measure,
    resampled_scores,
    trust,
    unit_intervals,
)
from axolotl_alphalora.spectral.model import BaseModel
from axolotl_alphalora.spectral.power_law import PowerLawFit, fit_power_law
from axolotl_alphalora.spectral.quality import assess
from axolotl_alphalora.spectral.reading import Spectra, read_spectra
from axolotl_alphalora.spectral.spectrum import significant, spectra, spectrum
from axolotl_alphalora.spectral.weights import LiveWeights, WeightSource

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
