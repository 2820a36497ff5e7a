"""Looking into a trained adapter: its experts' weights, and what its routers do with data."""

from .files import AdapterConfig, open_weights, read_config
from .report import (
    BlockSummary,
    InspectedData,
    Inspection,
    TaskSummary,
    inspect_weights,
)
from .routing import ALL, RoutingSummary, Usage, distance, expert_shares, specialisation
from .weights import Expert, ModuleExperts, read_experts

__all__ = [
    "ALL",
    "AdapterConfig",
    "BlockSummary",
    "Expert",
    "InspectedData",
    "Inspection",
    "ModuleExperts",
    "RoutingSummary",
    "TaskSummary",
    "Usage",
    "distance",
    "expert_shares",
    "inspect_weights",
    "open_weights",
    "read_config",
    "read_experts",
    "specialisation",
]
