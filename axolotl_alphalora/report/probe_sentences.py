"""What a probe has found out, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .tables import Column, Table
from .words import WARNING, decimal

if TYPE_CHECKING:
    from ..probe import Probe, Verdict

_NAMES = {
    "adapter": "the adapter",
    "base": "the base model",
    "half": "the adapter at half its scale",
    "double": "the adapter at twice its scale",
}
_MODULES = (
    "Look at the names of the modules in the adapter's file: a server that has others passes them "
    "over in silence. Its options, and the name of the model in the request, may be wrong too."
)
_SCALE = (
    "The adapter may be scaled wrongly (`alpha_pattern` or `rank_pattern` not read), in part "
    "missing, or on another base; or the base is quantised so that it answers otherwise."
)


def verdict(found: Verdict) -> list[str]:
    """Say who has answered, how sure that is, and where to look if it is not the adapter."""
    near = found.distances[found.nearest]
    how = f"{near:.4f} nats a token away, where {found.tolerance:.4f} are allowed"
    if found.served == "adapter":
        return [f"The adapter is served ({how})."]
    if found.served == "base":
        return [f"{WARNING}the base model is served, without the adapter ({how}).", _MODULES]
    nearest = f"nearest is {_NAMES[found.nearest]}, {how}"
    return [f"{WARNING}something else is served: {nearest}.", _SCALE]


def distances_table(found: Verdict) -> Table:
    """How far the answers are from those of each model that the probe knows."""
    known = list(found.distances)
    return Table(
        [
            Column("answers of", [_NAMES[name] for name in known], left=True),
            Column("same text", [f"{found.same[name]} of {found.prompts}" for name in known]),
            Column("nats a token", [decimal(found.distances[name], 4) for name in known]),
        ],
        title="How far the answers are",
    )


def written(probe: Probe, separations: dict[str, float]) -> list[str]:
    """Say what was written down, and whether it can tell the adapter from others."""
    base = separations["base"]
    scales = min(value for name, value in separations.items() if name != "base")
    said = [
        f"{len(probe.asked)} prompts. In their answers the base model is {base:.4f} nats a token "
        f"away from the adapter, a wrong scale (half or double) {scales:.4f}."
    ]
    if base < _HARDLY:
        said.append(f"{WARNING}adapter and base answer nearly alike: give other rows.")
    elif scales < _HARDLY:
        said.append(
            f"{WARNING}a wrong scale hardly changes these answers, so a server in low precision "
            "may look like one: give rows that the adapter is less sure of, or --tolerance."
        )
    return said


_HARDLY = 0.02
"""Half precisions move log-probabilities by about this."""
