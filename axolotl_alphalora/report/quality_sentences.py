"""What the spectra of a model come to, in sentences.

Each function returns paragraphs; one that begins with `WARNING` deserves attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from ..allocation import Plan
from ..blocks import group_by_unit, kind_in_stack, stack_of
from .findings import POOR_DISTANCE, SHORT_TAIL, Findings, is_poor
from .words import WARNING, first_of, listed, plural

if TYPE_CHECKING:
    from ..settings import MatrixQuality


_UNITS = {"block": "blocks", "group": "parts of blocks", "module": "modules"}

NOISE = 0.5
"""Below this reliability most of the differences between blocks are errors of the fits."""


def explain_plan(plan: Plan, findings: Findings | None) -> list[str]:
    """Say what a plan's findings come to, with the experts that they brought; nothing without."""
    if findings is None:
        return []
    return explain(findings, {unit.name: unit.experts for unit in plan.units})


def explain(findings: Findings, experts: Mapping[str, float] | None = None) -> list[str]:
    """Say in sentences what the findings come to.

    Args:
        findings: What was measured.
        experts: Unit name to its number of experts, to be named with the units that stand out.

    Returns:
        One paragraph a line; one that begins with `WARNING` deserves attention.
    """
    return [
        *_extremes(findings, experts or {}),
        *_fits(findings.matrices),
        *_notes(findings.matrices),
        *_unmeasured(findings.description),
        *_quantised(findings),
        *_ranking(findings),
    ]


def _extremes(findings: Findings, experts: Mapping[str, float]) -> list[str]:
    scores = findings.scores
    if len(scores) < 2:
        return []
    least, best = max(scores, key=lambda u: scores[u]), min(scores, key=lambda u: scores[u])
    if scores[least] == scores[best]:
        return [
            f"All {len(scores)} {_UNITS[findings.granularity]} have the same alpha, "
            f"{scores[best]:.3f}."
        ]

    def words(unit: str) -> str:
        number = f", {plural(experts[unit], 'expert')}" if unit in experts else ""
        return f"{unit} (alpha {scores[unit]:.3f}{number})"

    return [f"Least trained: {words(least)}. Best trained: {words(best)}."]


def _fits(matrices: Sequence[MatrixQuality]) -> list[str]:
    fitted = [row for row in matrices if row.alpha is not None]
    distances = [row.distance for row in fitted if row.distance is not None]
    tails = [row.tail_size for row in fitted if row.tail_size is not None]
    if not distances or not tails:
        return []
    usual = median(row.num_eigenvalues for row in fitted)
    lines = [
        f"Fits: {plural(len(fitted), 'matrix', 'matrices')}, median distance "
        f"{median(distances):.3f}, median tail {median(tails):g} of {usual:g} eigenvalues."
    ]
    poor = sorted(
        (row for row in fitted if is_poor(row)), key=lambda row: row.distance or 0, reverse=True
    )
    if poor:
        worst = _matrices(poor, lambda row: f"distance {row.distance:.2f}, tail {row.tail_size}")
        lines.append(
            f"Poor fits (distance above {POOR_DISTANCE:g} or tail below {SHORT_TAIL}): {worst}."
        )
    return lines


def _notes(matrices: Sequence[MatrixQuality]) -> list[str]:
    noted = [row for row in matrices if row.note is not None]
    known = {kind_in_stack(row.module) for row in matrices if row.alpha is not None}
    unfitted = [row for row in noted if row.alpha is None]
    groups = (
        (
            "Without a power law, counted with the mean alpha of their kind in the other blocks",
            [row for row in unfitted if kind_in_stack(row.module) in known],
        ),
        (
            "Left out of every block, since no matrix of their kind has a power law",
            [row for row in unfitted if kind_in_stack(row.module) not in known],
        ),
        (
            "Fitted to their eigenvalues above round-off only, or to few",
            [row for row in noted if row.alpha is not None],
        ),
    )
    return [
        f"{what}: {_matrices(rows, lambda row: row.note or '')}." for what, rows in groups if rows
    ]


def _unmeasured(description: Mapping[str, Sequence[str]]) -> list[str]:
    stacked = description.get("unmeasured", [])
    further = description.get("further_blocks", [])
    left_out = description.get("left_out", [])
    said = []
    if stacked:
        said.append(
            f"Not measured: {plural(len(stacked), 'stacked weight')}, which hold several matrices "
            f"each and take no experts ({first_of(stacked)})."
        )
    if further:
        said.append(
            f"Not measured: {plural(len(further), 'matrix', 'matrices')} of blocks that "
            "transformers leaves in the files, such as layers that predict further tokens "
            f"({first_of(further)})."
        )
    if left_out:
        said.append(
            f"{WARNING}{plural(len(left_out), 'matrix', 'matrices')} in the files belong to no "
            f"layer of the model as transformers makes it by its config.json, and are left out "
            f"here and in training: {first_of(left_out)}. Do the files hold more than this model?"
        )
    return said


def _quantised(findings: Findings) -> list[str]:
    quantization = findings.description.get("quantization")
    if not quantization or findings.settings.estimator == "hill":
        return []
    return [
        f"{WARNING}these are dequantised weights ({quantization}). Quantisation moves the start "
        f"of the tail, and with it {findings.settings.estimator}'s alpha, by as much as blocks "
        "differ; hill's hardly. Use the estimator hill, or the full-precision checkpoint."
    ]


def _unlike(findings: Findings) -> tuple[str, str] | None:
    """Two units of a stack that hold layers of other kinds than each other, if kinds count."""
    if findings.settings.normalize:
        return None
    seen: dict[str, tuple[frozenset[str], str]] = {}
    for unit, names in group_by_unit(
        (row.module for row in findings.matrices), findings.granularity
    ).items():
        if stack_of(names[0]) == names[0]:
            continue
        kinds = frozenset(map(kind_in_stack, names))
        first, other = seen.setdefault(stack_of(names[0]), (kinds, unit))
        if kinds != first:
            return other, unit
    return None


def _ranking(findings: Findings) -> list[str]:
    units = _UNITS[findings.granularity]
    unlike = _unlike(findings)
    if unlike is not None:
        return [
            f"{WARNING}{unlike[0]} and {unlike[1]} hold layers of different kinds, and kinds "
            f"differ in alpha whatever their training: these {units} are ranked by their kinds "
            "as much as by how well they are trained. Set `normalize: true`."
        ]
    share, judged = findings.most_trust, findings.trust is not None
    if share is None:
        return []
    if share >= NOISE and not judged:
        return [
            "Ranking: not judged yet. The errors of these fits come mostly from where each tail "
            "starts; --confidence resamples the spectra and says how much of the ranking is noise."
        ]
    most = "" if judged else "at most "
    said = (
        f"{most}{share:.0%} of the variance between the {units}' alphas is more than the errors of "
        f"the fits explain. {_judged(findings)}"
    )
    if share >= NOISE:
        return [f"Ranking: {said}"]
    return [
        f"{WARNING}the ranking of the {units} rests on noise: {said} An even allocation would be "
        "as well founded."
    ]


def _judged(findings: Findings) -> str:
    searched = findings.settings.estimator != "hill"
    if not findings.intervals:
        if not searched:
            return "Judged by asymptotic standard errors; --confidence resamples the spectra."
        return (
            "Judged by asymptotic standard errors, as if it were known where each tail starts; "
            "--confidence resamples the spectra, which counts that choice too."
        )
    if not searched and findings.settings.window is None:
        return (
            "Judged by resampling, which overstates hill's errors on whole matrices; windows do "
            "not suffer from that."
        )
    return "Judged by resampling the spectra."


def _matrices(rows: Sequence[MatrixQuality], words: Callable[[MatrixQuality], str]) -> str:
    return listed([f"{row.module} ({words(row)})" for row in rows])
