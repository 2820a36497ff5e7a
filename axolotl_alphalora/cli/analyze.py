"""`alphalora analyze`: layer quality alone, from a model's files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from ..planning.keys import YAML_SUFFIXES
from ..planning.source import AS_GIVEN, check_estimator, quality_options
from ..progress import working
from ..report.documents import analyses_document, analysis_document
from ..report.findings import Findings
from ..report.plan_tables import (
    ANALYSES_LEGEND,
    Analysed,
    analyses_table,
    analysis_table,
    matrices_table,
)
from ..report.plots import save_analysis
from ..report.quality_sentences import explain
from ..report.terminal import print_as_is, print_lines, print_table
from ..report.words import source_line
from ..settings import AGGREGATES, ESTIMATORS, QualitySettings
from .options import (
    Display,
    ModelName,
    check_files,
    errors_in_words,
    only_output,
    shared_options,
)

if TYPE_CHECKING:
    from ..spectral import Measurement

_DEFAULTS = QualitySettings()


@click.command()
@click.argument("model", metavar="MODEL_DIR|HUB_ID|FILE.gguf", type=ModelName())
@click.option(
    "--estimator",
    type=click.Choice(ESTIMATORS),
    default=_DEFAULTS.estimator,
    show_default=True,
    help="How to choose where the power law's tail starts.",
)
@click.option(
    "--window",
    metavar="auto|N|RxC",
    help="Pool the spectra of windows of one shape; left out: whole matrices.",
)
@click.option(
    "--aggregate",
    type=click.Choice(AGGREGATES),
    default=_DEFAULTS.aggregate,
    show_default=True,
    help="How matrices make a block's alpha; parameters: the mean by size.",
)
@click.option("--normalize", is_flag=True, help="Compare alphas within their kind first.")
@shared_options
@click.option(
    "--compare",
    multiple=True,
    metavar="SPEC[,SPEC...]",
    help="Lay other ways beside this one: an estimator, or estimator=hill+window=auto.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--revision", help="Branch, tag or commit of a hub model.")
@click.option("--trust-remote-code", is_flag=True, help="Let the model's own code run.")
def analyze(
    model: str,
    estimator: str,
    window: str | None,
    aggregate: str,
    normalize: bool,
    as_json: bool,
    revision: str | None,
    trust_remote_code: bool,
    **wanted: Any,
) -> None:
    """Print how well each block of a model is trained.

    Every linear layer inside a numbered block is measured: the smaller alpha, the heavier the tail
    of its spectrum and the better trained the layer. Needs no YAML. Only a quantised model is
    loaded; spectra are kept for the next time.

    With --json the output is one object: `format`, `version`, `model`, `weights` (source, dtype,
    revision, quantization, digest), `settings` (estimator, window, aggregate, normalize), `trust`
    (share of the variance between blocks that is more than the fits' errors, or null), `blocks`
    (name, score, interval or null) and `modules` (module, shape of the stored weight, alpha, x_min,
    distance, tail_size, num_eigenvalues, numerical_rank, note, standard_error). With --compare it
    is an object whose `columns` hold `label`, `rank_correlation`, `trust` and `analysis` each.
    """
    if model.endswith(YAML_SUFFIXES):
        raise click.UsageError(
            f"{model} is a YAML, and this analyses a model: give its `base_model`, or use "
            f"`alphalora plan {model}`."
        )
    display = Display.read(**wanted)
    check_files({"--plot": display.plot}, model)
    console = Console(stderr=as_json)
    with errors_in_words(), only_output(as_json) as emit:
        settings = QualitySettings(estimator, _window(window), aggregate, normalize)  # type: ignore[arg-type]
        others = {spec: replace(settings, **quality_options(spec)) for spec in display.compare}
        for one in (settings, *others.values()):
            check_estimator(one.estimator, display.samples)

        def measured(one: QualitySettings) -> tuple[Measurement, Findings]:
            return _measure(model, one, revision, trust_remote_code, display.samples, console)

        if others:
            document = _compare(model, settings, others, measured, None if as_json else console)
        else:
            document = _show(model, measured(settings), display, console, quiet=as_json)
        if as_json:
            emit(json.dumps(document, indent=2))


def _measure(
    model: str,
    settings: QualitySettings,
    revision: str | None,
    trust_remote_code: bool,
    samples: int,
    console: Any,
) -> tuple[Measurement, Findings]:
    from ..analysis import measure_model
    from ..spectral import unit_intervals

    with working(console) as doing:
        found = measure_model(
            model,
            settings,
            revision=revision,
            trust_remote_code=trust_remote_code,
            progress=doing("Reading spectra"),
        )
        intervals = {}
        if samples:
            step = doing("Resampling")([row.module for row in found.matrices])
            intervals = unit_intervals(found, samples, progress=step)
    return found, Findings.of_measurement(found, intervals)


def _show(
    model: str, measured: tuple[Measurement, Findings], display: Display, console: Any, quiet: bool
) -> dict[str, Any]:
    """Print and draw as asked; returns the analysis as JSON values."""
    measurement, findings = measured
    document = analysis_document(model, findings)
    if not quiet:
        print_table(analysis_table(findings, model), console)
        print_lines(explain(findings), console)
        if display.per_module:
            console.print()
            print_table(matrices_table(findings.matrices), console)
    if display.plot is not None:
        spectra = measurement.spectra if display.spectra else None
        save_analysis(findings, model, display.plot, document, spectra)
        print_as_is(f"\nDrawn in {display.plot}", console)
    return document


def _compare(
    model: str,
    settings: QualitySettings,
    others: Mapping[str, QualitySettings],
    measured: Any,
    console: Any,
) -> dict[str, Any]:

    columns = []
    for label, one in {AS_GIVEN: settings, **others}.items():
        _, findings = measured(one)
        columns.append(Analysed(label, findings, analysis_document(model, findings)))
    if console is not None:
        caption = source_line(model, findings.description)
        print_table(analyses_table(columns, caption), console)
        print_lines([ANALYSES_LEGEND], console)
    return analyses_document(columns)


def _window(text: str | None) -> str | int | None:
    return int(text) if text is not None and text.isdecimal() else text
