"""Pictures: a plan or an analysis over depth, spectra with their fits, plans beside each other.

matplotlib is optional and imported when something is drawn, without its global state.
"""

from .comparison import Series, save_comparison
from .files import SUFFIXES, check_plot
from .picture import Picture, save_plot

__all__ = ["SUFFIXES", "Picture", "Series", "check_plot", "save_comparison", "save_plot"]
