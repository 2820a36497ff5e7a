"""Pictures: a plan or an analysis over depth, spectra with their fits, plans beside each other,
and the experts of a trained adapter.

matplotlib is optional and imported when something is drawn, without its global state.
"""

from .comparison import Series, save_comparison
from .files import SUFFIXES, check_plot
from .inspection import save_inspection
from .picture import Picture, save_plot

__all__ = [
    "SUFFIXES",
    "Picture",
    "Series",
    "check_plot",
    "save_comparison",
    "save_inspection",
    "save_plot",
]
