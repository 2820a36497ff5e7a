"""Short descriptions of one way of measuring or sharing out, as typed on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..allocation import registry
from ..allocation.registry import read_value
from ..settings import ESTIMATORS, QualitySettings

if TYPE_CHECKING:
    from .request import PlanRequest

AS_GIVEN = "as given"
"""Label of what the specifications are compared with."""

# A quote inside a word is an apostrophe; two single quotes inside a quoted text stand for one.
_TOKEN = re.compile(r""""(?:\\.|[^"\\])*"|(?<!\w)'(?:''|[^'])*'|.""", re.DOTALL)


def read_spec(spec: str) -> dict[str, Any]:
    """Read what one specification changes.

    Args:
        spec: Parts joined by ``+``: the name of a strategy (``mola``, ``mola:2468``), the name of
            an estimator, or ``option=value``, with values as in YAML: ``estimator=hill+beta=1``,
            ``counts+experts=[1, 2]``.

    Returns:
        Option to value, ``strategy`` among them.

    Raises:
        ValueError: If a part is none of these, or an option is named twice.
    """
    found: dict[str, Any] = {}
    for part in split_outside(spec, "+"):
        key, sign, text = _split(part)
        if sign == ":":
            read = registry().read(part)
        elif sign == "=":
            try:
                read = {key: read_value(text)}
            except ValueError as error:
                raise ValueError(f"{spec}: {error}") from error
        elif key in ESTIMATORS:
            read = {"estimator": key}
        elif key in registry().names():
            read = {"strategy": key}
        else:
            raise ValueError(
                f"{spec}: {part!r} is no strategy ({', '.join(registry().names())}), no "
                f"estimator ({', '.join(ESTIMATORS)}) and no option=value"
            )
        for name, value in read.items():
            if name in found:
                raise ValueError(f"{spec}: {name} is named twice")
            found[name] = value
    return found


def quality_options(spec: str) -> dict[str, Any]:
    """Read a specification of measuring only.

    Raises:
        ValueError: As :func:`read_spec` does, and if it names an option of sharing out.
    """
    found = read_spec(spec)
    for key in found:
        if key not in QualitySettings.names():
            raise ValueError(
                f"{spec}: {key} is no option of measuring: it takes "
                f"{', '.join(QualitySettings.names())}"
            )
    return found


def changed_allocation(strategy: str, options: Mapping[str, Any], spec: str) -> dict[str, Any]:
    """Apply a specification to a strategy and its options.

    What the specification leaves open is kept, unless it names another strategy: that one has its
    own options, with their defaults.

    Args:
        strategy: Name of the strategy.
        options: Its options, as far as they were given.
        spec: The specification.

    Returns:
        ``strategy`` and the options that are given then.

    Raises:
        ValueError: If the specification cannot be read, or the strategy does not take an option.
        ImportError: If the estimator needs a package that is not installed.
    """
    given = read_spec(spec)
    kept = options if given.get("strategy", strategy) == strategy else {}
    found = {"strategy": strategy, **kept, **given}
    options = {name: value for name, value in found.items() if name != "strategy"}
    try:
        settings = registry().get(found["strategy"]).options(options)
        check_estimator(getattr(settings, "estimator", ""))
    except (ValueError, ImportError) as error:
        raise type(error)(f"{spec}: {error}") from error
    return found


def changed(request: PlanRequest, spec: str) -> PlanRequest:
    """Apply a specification to a request, see :func:`changed_allocation`."""
    found = changed_allocation(request.strategy, request.options, spec)
    return replace(request, strategy=found.pop("strategy"), options=found)


def check_estimator(estimator: str, samples: int = 0) -> None:
    """Check that an estimator can run here, and be resampled if that is wanted.

    Raises:
        ValueError: If it can not be resampled.
        ImportError: If it needs a package that is not installed.
    """
    if estimator != "weightwatcher":
        return
    if find_spec("weightwatcher") is None:
        raise ImportError(
            "the estimator weightwatcher needs the package of that name: "
            "`pip install weightwatcher`"
        )
    if samples:
        raise ValueError(
            "--confidence resamples spectra, and weightwatcher analyses matrices: use the "
            "estimator ks, which gives the same alphas"
        )


def split_outside(text: str, separator: str) -> list[str]:
    """Split at every separator that is outside square and curly brackets and quotes, as in YAML.

    Args:
        text: The text.
        separator: One character.

    Returns:
        The parts, without spaces around them.
    """
    parts, depth = [""], 0
    for token in _TOKEN.findall(text):
        if token == separator and not depth:
            parts.append("")
            continue
        if token in "[{":
            depth += 1
        elif token in "]}":
            depth = max(0, depth - 1)
        parts[-1] += token
    return [part.strip() for part in parts]


def _split(part: str) -> tuple[str, str, str]:
    """Return what stands before the first colon or equals sign, the sign, and what follows."""
    found = re.search(r"[:=]", part)
    if found is None:
        return part, "", ""
    return part[: found.start()].strip(), found[0], part[found.end() :].strip()
