"""Spectral quality of weight matrices: spectra, power-law fits and where the weights come from."""

from axolotl_alphalora.spectral.checkpoint import CheckpointWeights, MissingTensor
from axolotl_alphalora.spectral.files import UnreadableCheckpoint
from axolotl_alphalora.spectral.power_law import ESTIMATORS, PowerLawFit, fit_power_law
from axolotl_alphalora.spectral.quality import MatrixQuality, block_scores, measure
from axolotl_alphalora.spectral.spectrum import significant, spectrum
from axolotl_alphalora.spectral.weights import LiveWeights, WeightSource

__all__ = [
    "ESTIMATORS",
    "CheckpointWeights",
    "LiveWeights",
    "MatrixQuality",
    "MissingTensor",
    "PowerLawFit",
    "UnreadableCheckpoint",
    "WeightSource",
    "block_scores",
    "fit_power_law",
    "measure",
    "significant",
    "spectrum",
]
