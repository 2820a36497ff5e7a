"""The scores that a table of blocks shows, however finely experts were counted."""

import pytest

from axolotl_alphalora.allocation import Evidence
from axolotl_alphalora.report.findings import BlockScores, Findings, module_explained, module_shares
from axolotl_alphalora.report.plan_sentences import budget_line, summary
from axolotl_alphalora.settings import MatrixQuality
from axolotl_alphalora.spectral import unit_scores
from helpers import allocating

KINDS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")
NAMES = [f"model.layers.{block}.{kind}" for block in range(2) for kind in KINDS]
TWELVE = {"total_experts": 12}
SHAPES = dict.fromkeys(NAMES, (8, 8))


def plan(strategy, evidence=None, budget=TWELVE, **options):
    return allocating.plan(strategy, SHAPES, options=options, budget=budget, evidence=evidence)


def sensitivities():
    first = {name: float(i) for i, name in enumerate(NAMES)}
    second = {name: 1e6 if i == 0 else 0.0 for i, name in enumerate(NAMES)}
    sample = {"tasks": {"a": 3, "b": 1}, "seed": 7, "digest": "x"}
    return Evidence(sensitivities={"a": first, "b": second}, sample=sample)


@pytest.mark.parametrize("granularity", ["block", "group", "module"])
def test_shares_of_a_block_add_up_and_tasks_count_the_same(granularity):
    made = plan("sensitivity", sensitivities(), granularity=granularity)
    found = BlockScores.of(made)
    assert found.name == "share"
    low = (3 / 15 + 1) / 2
    assert found.values == pytest.approx({"model.layers.0": low, "model.layers.1": 1 - low})
    assert found.text("model.layers.0") == "60.00%"
    shares = module_shares(made)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares[NAMES[0]] == pytest.approx(0.5)


def explained():
    """Two blocks whose modules' first three experts explain so much."""
    rows = {name: (0.5 / (i + 1), 0.25 / (i + 1), 0.0) for i, name in enumerate(NAMES)}
    sample = {"tasks": {"a": 3, "b": 1}, "seed": 7, "digest": "x"}
    return Evidence(explained_variances=rows, sample=sample)


@pytest.mark.parametrize("granularity", ["block", "group", "module"])
def test_a_block_has_the_mean_of_what_its_layers_components_explain(granularity):
    made = plan("eva", explained(), granularity=granularity)
    found = BlockScores.of(made)
    assert found.name == "explained"
    values = [0.75 / (i + 1) for i in range(len(NAMES))]
    half = len(NAMES) // 2
    assert found.values == pytest.approx(
        {"model.layers.0": sum(values[:half]) / half, "model.layers.1": sum(values[half:]) / half}
    )
    assert found.text("model.layers.0") == f"{sum(values[:half]) / half:.2%}"


def test_a_module_counts_what_its_own_experts_explain():
    made = plan("eva", explained(), {"total_experts": 3})
    for i, (name, share) in enumerate(module_explained(made).items()):
        wanted = {0: 0, 1: 0.5, 2: 0.75, 3: 0.75}[min(made.counts[name], 3)]
        assert share == pytest.approx(wanted / (i + 1))
    assert module_explained(plan("uniform")) == {}
    (line,) = [line for line in summary(made) if "sample" in line]
    assert "inputs of layers on 4 samples of 2 tasks (a 3, b 1), seed 7" in line
    assert "gradients" not in line


@pytest.mark.parametrize("granularity", ["block", "group", "module"])
def test_a_block_has_the_mean_alpha_of_its_matrices(granularity):
    rows = tuple(
        MatrixQuality(name, (8, 8), 2.0 + i**2, 1.0, 0.05, 50, 64, 64)
        for i, name in enumerate(NAMES)
    )
    alphas = unit_scores(rows, granularity=granularity)
    intervals = {unit: (alpha - 1, alpha + 1) for unit, alpha in alphas.items()}
    evidence = Evidence(alphas=alphas, qualities=rows, intervals=intervals)
    made = plan("alphalora", evidence, granularity=granularity)
    findings = Findings.of_plan(made)
    assert findings.scores == {unit.name: unit.score for unit in made.units}
    assert findings.granularity == granularity
    found = BlockScores.of(made, findings)
    assert (found.name, found.values) == ("alpha", unit_scores(rows))
    assert bool(found.intervals) == (granularity == "block")


def test_other_scores_are_called_so_and_whole_ones_have_no_decimals():
    line = BlockScores.of(plan("depth", ramp=[1.5, 3.0]))
    assert (line.name, line.text("model.layers.0")) == ("score", "1.500")
    assert BlockScores.of(plan("mola", shape=[2, 4])).text("model.layers.1") == "4"
    assert BlockScores.of(plan("uniform")).values == {}
    assert Findings.of_plan(plan("uniform")) is None


def test_the_summary_counts_adapted_matrices_and_the_sample():
    rule = plan("sensitivity", sensitivities(), None, percentile=50)
    lines = summary(rule)
    assert lines[0] == "Budget: none, sensitivity has numbers of its own."
    assert lines[1] == "4 experts on 4 of 6 matrices."
    assert lines[2].endswith("on 4 samples of 2 tasks (a 3, b 1), seed 7.")
    assert budget_line(plan("uniform")) == "Budget: 12 experts, met exactly."
