"""From a configuration to a plan: what is asked for, what is measured, and what comes of it.

Owns the `alphalora:` block. Knows nothing of the host; imports torch when weights are measured.
What a plan needs of transformers and PEFT, the names and sizes of the target layers, is kept in the
cache: neither is imported when the same question comes again.
"""

from .compare import (
    Compared,
    Stability,
    changed_blocks,
    compare_plans,
    moved_experts,
    rank_correlation,
)
from .config import ADAPTER, AlphaLoraConfigBlock
from .planner import (
    Measured,
    MeasureSamples,
    ModelNeeded,
    Planner,
    WeightsNotReadable,
    plan_from_files,
    plan_from_model,
)
from .request import (
    PlanRequest,
    Targets,
    base_model,
    layers,
    plan_request,
    read_block,
)
from .saved_plan import check_optimizer, check_plan
from .source import Source, read_source

__all__ = [
    "ADAPTER",
    "AlphaLoraConfigBlock",
    "Compared",
    "MeasureSamples",
    "Measured",
    "ModelNeeded",
    "PlanRequest",
    "Planner",
    "Source",
    "Stability",
    "Targets",
    "WeightsNotReadable",
    "base_model",
    "changed_blocks",
    "check_optimizer",
    "check_plan",
    "compare_plans",
    "layers",
    "moved_experts",
    "plan_from_files",
    "plan_from_model",
    "plan_request",
    "rank_correlation",
    "read_block",
    "read_source",
]
