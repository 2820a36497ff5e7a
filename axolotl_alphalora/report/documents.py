"""Analyses, comparisons and inspections as JSON values: what `--json` prints and a page holds.

A saved plan and the record of an export are documents of their own, beside what writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..planning import Compared, changed_blocks, moved_experts, rank_correlation
from .findings import Findings

if TYPE_CHECKING:
    from ..adapter.usage import RouterUsage
    from ..inspection import Inspection, ModuleExperts
    from .plan_tables import Analysed

ANALYSIS = "axolotl-alphalora-analysis"
INSPECTION = "axolotl-alphalora-inspection"
VERSION = 1


def analysis_document(model: str, findings: Findings) -> dict[str, Any]:
    """Return an analysis; `alphalora analyze --help` describes each field.

    Args:
        model: The model's directory or hub id, as it was named.
        findings: What was measured.
    """
    from ..analysis import matrix_row

    return {
        "format": ANALYSIS,
        "version": VERSION,
        "model": model,
        "weights": dict(findings.description),
        "settings": asdict(findings.settings),
        "trust": findings.trust,
        "blocks": [
            {"name": name, "score": score, "interval": findings.intervals.get(name)}
            for name, score in findings.scores.items()
        ],
        "modules": [matrix_row(row) for row in findings.matrices],
    }


def analyses_document(analyses: Sequence[Analysed]) -> dict[str, Any]:
    """Return compared analyses.

    Returns:
        `columns`: for each its `label`, `rank_correlation` of the blocks' alphas with the
        first column's, `trust` and the `analysis`.
    """
    return {
        "columns": [
            {
                "label": one.label,
                "rank_correlation": one.correlation(analyses[0]),
                "trust": one.document["trust"],
                "analysis": dict(one.document),
            }
            for one in analyses
        ]
    }


def plans_document(plans: Sequence[Compared]) -> dict[str, Any]:
    """Return compared plans.

    Returns:
        `columns`: for each its `label`; `rank_correlation` of the modules' numbers with the
        first column's, null where a plan is constant; `blocks_that_differ` and
        `experts_that_move` against the first; `stability`: a list of `over`, `plans`,
        `rank_correlation` and `moved`, empty for a plan that rests on no evidence, null where
        it is not known; `trust`; and the `plan`. `rank_correlations`: of all pairs.
    """
    first = plans[0].plan
    rows = []
    for one in plans:
        findings = Findings.of_plan(one.plan)
        known = one.stability
        rows.append(
            {
                "label": one.label,
                "rank_correlation": rank_correlation(first.numbers, one.plan.numbers),
                "blocks_that_differ": changed_blocks(one.plan, first),
                "experts_that_move": moved_experts(one.plan.numbers, first.numbers),
                "stability": None if known is None else [asdict(over) for over in known],
                "trust": findings.trust if findings else None,
                "plan": one.plan.to_dict(),
            }
        )
    return {
        "columns": rows,
        "rank_correlations": [
            [rank_correlation(one.plan.numbers, other.plan.numbers) for other in plans]
            for one in plans
        ],
    }


def inspection_document(inspection: Inspection) -> dict[str, Any]:
    """Return all numbers of an inspection.

    ======================================== =====================================================
    `format`                               `"axolotl-alphalora-inspection"`
    `version`                              1
    `adapter.base_model`                   directory or repository id, or null
    `adapter.rank`                         rank of an expert before it is cut, where no module has
                                             its own
    `adapter.top_k`                        experts of a token before they are cut, where there are
                                             as many, or their share of a module's
    `adapter.segments`                     parts that each was cut into, which are the experts of
                                             all that follows
    `adapter.router_rank`, `.share_a`    rank of the routers, null for full ones; whether the
                                             experts of a module share one A
    `adapter.lora_alpha`, `.use_rslora`  what experts are scaled with
    `adapter.strategy`                     `name` and `options` that shared out the experts,
                                             or null if the adapter records no plan
    `adapter.blocks`, `.modules`         number of adapted blocks and modules
    `adapter.total_experts`                sum over the blocks of the mean number of their
                                             modules: `segments` times what a plan says
    `adapter.module_experts`               sum over the modules
    `adapter.parameters`                   parameters of all experts and routers
    `data`                                 null, or `source`, `tokens` and `rows`: task to
                                             number of rows
    `redundancy`                           mean over the modules with several experts, or null
    `routing`                              of all routers on all of the data, or null
    `blocks[].name`                        decoder block, such as `model.layers.0`
    `blocks[].experts`                     mean number of experts of its modules
    `blocks[].ranks`                       the ranks that its experts have
    `blocks[].mean_norm`                   mean over its experts, as is `mean_effective_rank`
    `blocks[].redundancy`                  mean over its modules with several experts, or null
    `blocks[].max_cosine`                  largest absolute cosine of two experts, or null
    `blocks[].routing`                     of its routers on all of the data, or null
    `modules[].name`                       exact name of the linear layer in the model
    `modules[].shape`                      its output and input features
    `modules[].rank`, `.scaling`         of each of its experts
    `modules[].parameters`                 parameters of its experts and its router
    `modules[].mean_norm`                  mean over its experts, as is `mean_effective_rank`
    `modules[].redundancy`                 mean absolute cosine of its pairs of experts, or null
    `modules[].max_cosine`, `.closest`   the largest one and the two experts' numbers, or null
    `modules[].cosine`                     a row for each expert; null with an expert that is zero
    `modules[].experts[].norm`             Frobenius norm of `scaling * B A`
    `modules[].experts[].effective_rank`   0 for an expert that is zero
    `modules[].experts[].singular_values`  the largest first
    `modules[].usage`                      null, or task (`"all"` is all of the data) to
                                             `tokens`, `top_k`, `token_share`, `mean_gates`,
                                             `entropy`, `top_gate`, `load_cv`, `load_max`
                                             and `dead`, the numbers of the dead experts
    `modules[].specialisation`             between 0 and 1; null with fewer than two tasks
    `tasks[].name`, `.tokens`            a task of the data; tokens of a router
    `tasks[].distance`                     part of its tokens for which the experts differ from
                                             the tasks' mean: a mean over routers
    `tasks[].routing`                      of all routers on this task
    ======================================== =====================================================


    A `routing` holds the fields of `RoutingSummary`. Experts
    are numbered from 0.
    """
    config, routing = inspection.config, inspection.routing
    return {
        "format": INSPECTION,
        "version": VERSION,
        "adapter": {
            "base_model": config.base_model,
            "rank": config.rank,
            "top_k": config.mixture.top_k,
            "segments": config.mixture.segments,
            "router_rank": config.mixture.router_rank,
            "share_a": config.mixture.share_a,
            "lora_alpha": config.lora_alpha,
            "use_rslora": config.use_rslora,
            "strategy": inspection.strategy,
            "blocks": len(inspection.blocks),
            "modules": len(inspection.modules),
            "total_experts": inspection.total_experts,
            "module_experts": inspection.module_experts,
            "parameters": inspection.parameters,
        },
        "data": None if inspection.data is None else asdict(inspection.data),
        "redundancy": inspection.redundancy,
        "routing": None if routing is None else asdict(routing),
        "blocks": [asdict(block) for block in inspection.blocks],
        "modules": [_module(inspection, row) for row in inspection.modules],
        "tasks": [asdict(task) for task in inspection.tasks],
    }


def _module(inspection: Inspection, row: ModuleExperts) -> dict[str, Any]:
    from ..inspection import ALL, specialisation

    by_task = inspection.task_usages(row.name)
    usage = inspection.usage_of(row.name)
    usages = {} if usage is None else {ALL: usage, **by_task}
    return {
        "name": row.name,
        "shape": (row.out_features, row.in_features),
        "rank": row.rank,
        "scaling": row.scaling,
        "parameters": row.parameters,
        "mean_norm": row.mean_norm,
        "mean_effective_rank": row.mean_effective_rank,
        "redundancy": row.redundancy,
        "max_cosine": row.max_cosine,
        "closest": row.closest,
        "cosine": row.cosine,
        "experts": [asdict(expert) for expert in row.experts],
        "usage": {task: _usage(one) for task, one in usages.items()} or None,
        "specialisation": specialisation(list(by_task.values())),
    }


def _usage(usage: RouterUsage) -> dict[str, Any]:
    return {
        **asdict(usage),
        "load_cv": usage.load_cv,
        "load_max": usage.load_max,
        "dead": usage.dead,
    }
