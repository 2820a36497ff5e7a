"""From a base model to a plan: measuring what the strategy needs, then letting it decide.

Knows nothing of the host. What a plan needs of transformers and PEFT, the names and sizes of the
target layers, is kept in the cache: neither is imported when the same question comes again.
"""

from ..spectral import check_model_files
from .making import (
    Found,
    Gradients,
    ModelNeeded,
    Progress,
    WeightsNotReadable,
    build,
    measured_plan,
    plan_from_files,
    plan_from_model,
    quality_evidence,
    sensitivity_evidence,
)
from .request import PlanRequest, base_model, check_plan, layers
from .targets import Targets

__all__ = [
    "Found",
    "Gradients",
    "ModelNeeded",
    "PlanRequest",
    "Progress",
    "Targets",
    "WeightsNotReadable",
    "base_model",
    "build",
    "check_model_files",
    "check_plan",
    "layers",
    "measured_plan",
    "plan_from_files",
    "plan_from_model",
    "quality_evidence",
    "sensitivity_evidence",
]
