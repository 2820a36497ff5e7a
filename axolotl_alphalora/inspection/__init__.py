"""Looking into a trained adapter: its experts' weights, and what its routers do with data."""

from .files import AdapterConfig, open_weights, read_config
from .summary import (
    ALL,
    InspectedData,
    Inspection,
    RoutingSummary,
    inspect_weights,
)
from .tasks import distance, expert_shares, specialisation
from .weights import ModuleExperts, read_experts

__all__ = [
    "ALL",
    "AdapterConfig",
    "InspectedData",
    "Inspection",
    "ModuleExperts",
    "RoutingSummary",
    "distance",
    "expert_shares",
    "inspect_weights",
    "open_weights",
    "read_config",
    "read_experts",
    "specialisation",
]
