"""The built-in strategies: one module each, with the hooks that any package's strategy has."""

from . import (
    alphalora,
    counts,
    depth,
    eva,
    mola,
    sensitivity,
    uniform,
)

BUILT_IN = (alphalora, mola, sensitivity, eva, uniform, depth, counts)
"""Their modules."""
