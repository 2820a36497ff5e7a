"""Plans and analyses as tables: of one, of its matrices, and of several beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from ..allocation import Plan
from ..blocks import block_name
from ..planning import Compared, Stability, changed_blocks, moved_experts, rank_correlation
from .findings import (
    BlockScores,
    Findings,
    block_experts,
    block_parameters,
    is_poor,
    module_explained,
    module_shares,
)
from .plan_sentences import budget_words, left_over, strategy_words
from .tables import MARKDOWN, PAGE, TERMINAL, Bar, Column, Note, Table, names, over
from .words import decimal, numeral, source_line, top_k_words

if TYPE_CHECKING:
    from ..settings import MatrixQuality


_INTERVAL = "95 % range"
_LEGEND = "rank: eigenvalues above round-off / all; ! marks a poor fit"


def plan_table(plan: Plan, findings: Findings | None) -> Table:
    """Return score, experts and trainable parameters of each block.

    Args:
        plan: The plan.
        findings: What it records of matrices, if anything was measured.
    """
    scores = BlockScores.of(plan, findings)
    numbers = plan.block_numbers
    most = max(numbers.values())
    columns = [names("block", numbers)]
    if scores.values:
        columns.append(Column(scores.name, [scores.text(block) for block in numbers]))
    if scores.intervals:
        columns.append(_intervals(numbers, scores.intervals))
    columns += [
        Column("experts", list(block_experts(plan).values()), [numeral(plan.total_experts)]),
        Column("", [Bar(number / most) for number in numbers.values()], left=True, on=[TERMINAL]),
        Column(
            "trainable",
            [f"{number:,}" for number in block_parameters(plan).values()],
            [f"{plan.trainable_parameters:,}"],
            on=[TERMINAL, MARKDOWN],
        ),
    ]
    return Table(
        columns,
        title=f"Experts per block: {strategy_words(plan.strategy)}, rank {plan.rank}, "
        + top_k_words(plan.top_k),
        caption=source_line(plan.base_model, plan.weights),
        footer=["total"],
    )


def analysis_table(findings: Findings, model: str) -> Table:
    """Return alpha, distance and tail of each block."""
    settings, scores = findings.settings, findings.scores
    how = [settings.estimator, f"{settings.aggregate} over a block's matrices"]
    how += [f"windows of {settings.window}"] if settings.window else []
    how += ["normalised by kind"] if settings.normalize else []
    members: dict[str, list[MatrixQuality]] = {name: [] for name in scores}
    for row in findings.matrices:
        members[block_name(row.module)].append(row)
    distances, tails = [], []
    for rows in members.values():
        fits = [row.distance for row in rows if row.distance is not None]
        sizes = [row.tail_size for row in rows if row.tail_size is not None]
        distances.append(decimal(median(fits) if fits else None))
        tails.append(f"{median(sizes):g}" if sizes else "-")
    most = max(scores.values()) - 1 or 1
    bars = [Bar((score - 1) / most) for score in scores.values()]
    columns = [
        names("block", scores),
        Column("alpha", [decimal(score) for score in scores.values()]),
        *([_intervals(scores, findings.intervals)] if findings.intervals else []),
        Column("", bars, left=True, on=[TERMINAL]),
        Column("distance", distances),
        Column("tail", tails),
    ]
    source = source_line(model, findings.description)
    return Table(
        columns,
        title=f"Layer quality: alpha by {', '.join(how)}",
        caption=f"{source}; bars show alpha - 1, distance and tail are medians",
    )


def matrices_table(matrices: Sequence[MatrixQuality]) -> Table:
    """Return what was measured of each matrix."""
    modules = [row.module for row in matrices]
    shapes = [f"{row.shape[0]}x{row.shape[1]}" for row in matrices]
    columns = [names("module", modules), Column("shape", shapes), *_measured(modules, matrices)]
    return Table(columns, title=f"Matrices ({_LEGEND})", by_block=True)


def modules_table(plan: Plan, findings: Findings | None) -> Table:
    """Return the number of experts (n) and the rank (r) of each matrix, and what was measured."""
    rows = plan.modules
    modules = [row.name for row in rows]
    legend = "n: experts, r: rank of each"
    columns = [
        names("module", modules),
        Column("shape", [f"{row.shape[0]}x{row.shape[1]}" for row in rows]),
        Column("n", [str(row.experts) for row in rows]),
        Column("r", [str(row.rank) if row.experts else "-" for row in rows]),
    ]
    if findings is not None:
        legend += f"; {_LEGEND}"
        columns += _measured(modules, findings.matrices)
    else:
        columns.append(Column("trainable", [f"{plan.parameters_of(row):,}" for row in rows]))
    for heading, shares in (("share", module_shares(plan)), ("explained", module_explained(plan))):
        if shares:
            texts = {name: f"{one:.2%}" for name, one in shares.items()}
            columns.append(Column(heading, over(modules, texts)))
    return Table(columns, title=f"Matrices ({legend})", by_block=True)


def _intervals(blocks: Iterable[str], intervals: Mapping[str, tuple[float, float]]) -> Column:
    texts = {name: f"{low:.2f} - {high:.2f}" for name, (low, high) in intervals.items()}
    return Column(_INTERVAL, over(blocks, texts), on=[TERMINAL, PAGE])


def _measured(modules: Sequence[str], matrices: Sequence[MatrixQuality]) -> list[Column]:
    """Columns of what was measured, for modules of which some may not have been."""
    known = {row.module: row for row in matrices}
    rows = [known.get(module) for module in modules]

    def cells(text: Callable[[MatrixQuality], str]) -> list[str]:
        return ["-" if row is None else text(row) for row in rows]

    noted = any(row.note is not None for row in matrices)
    return [
        Column("alpha", cells(lambda row: decimal(row.alpha))),
        Column(
            "x_min",
            cells(lambda row: "-" if row.x_min is None else f"{row.x_min:.4g}"),
            on=[PAGE],
        ),
        Column("distance", cells(lambda row: decimal(row.distance)), on=[PAGE]),
        Column(
            "distance",
            cells(lambda row: f"{decimal(row.distance)}{'!' if is_poor(row) else ' '}"),
            on=[TERMINAL],
        ),
        Column("tail", cells(lambda row: "-" if row.tail_size is None else str(row.tail_size))),
        Column("rank", cells(lambda row: f"{row.numerical_rank}/{row.num_eigenvalues}")),
        Column(
            "note",
            ["-" if row is None else Note(row.note or "") for row in rows],
            left=True,
            on=[TERMINAL, PAGE] if noted else [PAGE],
        ),
    ]


_WIDEST_LABEL = 24
_VARIED = {
    "estimators": "stability: estimators",
    "resamples": "stability: resamples",
    "halves": "stability: halves",
}
ANALYSES_LEGEND = (
    "Rank correlations are with the first column. Not noise: the share of the variance between the "
    "blocks' alphas that is more than the fits' errors explain; a dash where only resampling "
    "(--confidence, one column at a time) can tell."
)


@dataclass(frozen=True)
class Analysed:
    """One way of measuring: its heading, what came of it, and the same as JSON values."""

    label: str
    findings: Findings
    document: Mapping[str, Any]

    def correlation(self, other: Analysed) -> float | None:
        """Return Spearman's rank correlation of the alphas; None where it is not defined."""
        return rank_correlation(self.findings.scores, other.findings.scores)


def analyses_table(analyses: Sequence[Analysed], caption: str) -> Table:
    """Return the alpha of every block, a column for each way of measuring, differences below."""
    first = analyses[0]
    blocks = first.findings.scores
    columns = [names("block", blocks)]
    for one in analyses:
        cells = [decimal(one.findings.scores[block]) for block in blocks]
        correlation = "-" if one is first else decimal(one.correlation(first), 2)
        trust = one.document["trust"]
        sound = "-" if trust is None else f"{trust:.0%}"
        columns.append(Column(_heading(one.label), cells, [correlation, sound]))
    return Table(
        columns,
        title="Alpha of each block",
        caption=caption,
        footer=["rank correlation", "not noise"],
        leads=2,
    )


def plans_table(plans: Sequence[Compared]) -> Table:
    """Return the experts of every block, columns for each plan; below, how the plans differ."""
    first = plans[0].plan
    described = next((one.plan for one in plans if one.plan.weights["source"] != "none"), first)
    # The strategies that bring their own numbers record no budget.
    budgeted = next((one.plan for one in plans if one.plan.budget["kind"]), first)
    varied = _varied(plans)
    columns = [names("block", first.block_numbers)]
    for one in plans:
        columns += _columns(one, None if one is plans[0] else first, varied)
    return Table(
        columns,
        title=f"Experts (n) per block; budget: {budget_words(budgeted)}",
        caption=source_line(described.base_model, described.weights),
        footer=[
            "total experts",
            "trainable",
            "left over",
            "rank correlation",
            "blocks that differ",
            "experts that move",
            *(_VARIED[over] for over in varied),
        ],
        leads=2,
    )


def correlations_table(plans: Sequence[Compared]) -> Table:
    """Return the rank correlation of each two of the plans."""
    labels = [f"{number} {one.label}" for number, one in enumerate(plans, 1)]
    columns = [names("plan", labels, ending=False)]
    for number, one in enumerate(plans, 1):
        pairs = [rank_correlation(other.plan.numbers, one.plan.numbers) for other in plans]
        columns.append(Column(str(number), [decimal(pair, 2) for pair in pairs]))
    return Table(columns, title="Rank correlation of the plans' numbers, over all matrices")


def plans_legend(plans: Sequence[Compared]) -> str:
    """Say what the rows below the blocks of compared plans are."""
    said = (
        "Differences are against the first column. A rank correlation is Spearman's, of the "
        "numbers of all matrices; a dash where a plan gives every matrix the same."
    )
    varied = _varied(plans)
    if not varied:
        return said
    counts = {one.over: one.plans for plan in plans for one in plan.stability or ()}
    how = {
        "estimators": "by other estimators",
        "resamples": f"from {counts.get('resamples')} resamples of the spectra",
        "halves": "from one half of the training samples against the other",
    }
    return (
        f"{said} Stability is the mean rank correlation of a plan with those made "
        f"{', '.join(how[over] for over in varied)}, and the mean share of experts that move."
    )


def _columns(compared: Compared, first: Plan | None, varied: Sequence[str]) -> list[Column]:
    """A column of scores and numbers for a terminal; one of each for a page, which has room."""
    plan, label = compared.plan, compared.label
    scores = BlockScores.of(plan, Findings.of_plan(plan))
    texts = {block: scores.text(block) for block in plan.block_numbers}
    numbers = {block: numeral(number) for block, number in plan.block_numbers.items()}
    width = max(3, *map(len, numbers.values()))
    head, cells = "n", list(numbers.values())
    apart = []
    if scores.values:
        head = f"{scores.name} {head:>{width}}"
        cells = [f"{text} {numbers[block]:>{width}}" for block, text in texts.items()]
        apart = [Column(f"{label}: score", list(texts.values()), on=[PAGE])]
    below = [numeral(plan.total_experts), f"{plan.trainable_parameters:,}", left_over(plan)]
    below += ["-"] * 3
    if first is not None:
        below[3:] = [
            decimal(rank_correlation(first.numbers, plan.numbers), 2),
            str(changed_blocks(plan, first)),
            numeral(moved_experts(plan.numbers, first.numbers)),
        ]
    known = {one.over: one for one in compared.stability or ()}
    below += ["fixed" if compared.stability == () else _stable(known.get(over)) for over in varied]
    return [
        Column(f"{_heading(label)}\n{head}", cells, below, on=[TERMINAL]),
        *apart,
        Column(label, list(block_experts(plan).values()), on=[PAGE]),
    ]


def _heading(label: str) -> str:
    """Return a label, broken after each `+` and, where it is long, anywhere."""
    parts = label.replace("+", "+\n").splitlines()
    return "\n".join(line for part in parts for line in wrap(part, _WIDEST_LABEL))


def _varied(plans: Sequence[Compared]) -> list[str]:
    """What was varied for any of the plans."""
    known = {one.over for plan in plans for one in plan.stability or ()}
    return [over for over in _VARIED if over in known]


def _stable(known: Stability | None) -> str:
    return "-" if known is None else f"{decimal(known.rank_correlation, 2)} {known.moved:>4.0%}"
