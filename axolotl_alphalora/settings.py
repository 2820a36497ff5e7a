"""How layer quality is measured, and what is measured of a matrix, as plain values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from pydantic import Field

ESTIMATORS = ("xmin_peak", "xmin_peak_published", "hill", "ks", "weightwatcher")
"""Ways to choose where a power law's tail starts."""

AGGREGATES = ("mean", "median", "parameters")
"""Ways to make a block's score from its matrices' alphas."""


@dataclass(frozen=True)
class QualitySettings:
    """How layer quality is measured.

    Attributes:
        estimator: Which eigenvalue starts the power law's tail, see
            `fit_power_law`.
        window: Shape of the windows whose eigenvalues are pooled, as `"128x128"` (rows, columns
            of the stored weight), or `"auto"` for the largest square that fits all matrices;
            None takes every matrix whole. A number N or a pair [R, C] will do too.
        aggregate: How a block's matrices make its score, see
            `unit_scores`.
        normalize: Whether alphas are first compared within their kind of projection.

    Raises:
        ValueError: If a value is none of these; names the option.
    """

    estimator: str = "xmin_peak"
    window: str | None = None
    aggregate: str = "mean"
    normalize: bool = False

    def __post_init__(self) -> None:
        for option, choices in (("estimator", ESTIMATORS), ("aggregate", AGGREGATES)):
            value = getattr(self, option)
            if value not in choices:
                raise ValueError(f"unknown {option} {value!r}: choose one of {', '.join(choices)}")
        if not isinstance(self.normalize, bool):
            raise ValueError(f"normalize must be true or false, not {self.normalize!r}")
        object.__setattr__(self, "window", _window_text(self.window))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the options."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> QualitySettings:
        """Take the options that belong here; the others are somebody else's."""
        return cls(**{name: options[name] for name in cls.names() if name in options})

    def as_options(self) -> dict[str, Any]:
        """Return the options as plain JSON values."""
        return asdict(self)

    def window_shape(self) -> tuple[int, int] | str | None:
        """Return rows and columns of the windows, `"auto"`, or None."""
        if self.window is None or self.window == "auto":
            return self.window
        rows, _, columns = self.window.partition("x")
        return int(rows), int(columns)


def _window_text(value: Any) -> str | None:
    if value is None or value == "auto":
        return value
    sides = value
    if isinstance(value, int) and not isinstance(value, bool):
        sides = [value, value]
    elif isinstance(value, str) and re.fullmatch(r"\d+x\d+", value):
        sides = [int(side) for side in value.split("x")]
    if (
        isinstance(sides, list | tuple)
        and len(sides) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
        and min(sides) >= 3
    ):
        return f"{sides[0]}x{sides[1]}"
    raise ValueError(
        f'window must be null, "auto", a side such as 128 or a shape such as "128x64" '
        f"of 3 or more each, not {value!r}"
    )


Count = Annotated[int, Field(strict=True, ge=1)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


@dataclass(frozen=True)
class MatrixQuality:
    """What the spectrum of one weight matrix says.

    Attributes:
        module: Name of the module that owns the weight.
        shape: Shape of the weight as it is stored (a `Conv1D` stores input features first); in a
            plan, output features and input features.
        alpha: Power-law exponent of the spectrum's upper end; the lower, the heavier the tail and
            the better trained the matrix. None where no power law can be fitted; so for the next
            three.
        x_min: Eigenvalue at which the fitted tail starts.
        distance: Kolmogorov-Smirnov distance of the fit.
        tail_size: Number of eigenvalues in the tail.
        num_eigenvalues: Number of eigenvalues: the smaller side of the matrix, or of all its
            windows together.
        numerical_rank: Number of them above round-off; only these take part in the fit.
        note: What is out of the ordinary, in words, or None: no power law and why, a
            rank-deficient matrix, few eigenvalues.
    """

    module: str
    shape: tuple[int, int]
    alpha: Number | None
    x_min: Number | None
    distance: Number | None
    tail_size: Count | None
    num_eigenvalues: Count
    numerical_rank: Annotated[int, Field(strict=True, ge=0)]
    note: Annotated[str, Field(strict=True)] | None = None

    @property
    def standard_error(self) -> float | None:
        """The fit's asymptotic standard error, (alpha - 1) / sqrt(tail size).

        It takes the tail's start as known and the eigenvalues as independent (Clauset et al. 2009,
        equation 3.2); `bootstrap_alphas` does not
        take the start as known.
        """
        if self.alpha is None or self.tail_size is None:
            return None
        return (self.alpha - 1) / self.tail_size**0.5
