"""What methods forget, and by how much more or less than others."""

import pytest

from benchmarks.study import conclusions, forgetting, report
from benchmarks.study.cells import GRID
from benchmarks.study.stats import mean_interval
from helpers.study_lines import HERE, add

RISES = (0.3, 0.1, 0.2, 0.25, 0.15)
"""Of the mixture's loss on bbh over that of the LoRA, seed by seed."""


@pytest.fixture
def forgetful(done):
    """Results whose mixture forgets bbh, and nothing else."""
    for seed, rise in enumerate(RISES):
        line = done[HERE.cell("uniform", GRID[2], seed).key]
        line["others"] = {"bbh": 3.0 + GRID[2] + rise, "text": 4.0 + GRID[2]}
    return done


def test_losses_are_compared_seed_by_seed(forgetful):
    found = forgetting.apart(HERE, "uniform", "lora-r40", forgetful)
    assert found["bbh"] == pytest.approx(RISES) and found["text"] == pytest.approx([0] * 5)
    del forgetful[HERE.cell("lora-r40", GRID[2], 3).key]
    fewer = forgetting.apart(HERE, "uniform", "lora-r40", forgetful)
    assert fewer["bbh"] == pytest.approx([0.3, 0.1, 0.2, 0.15])
    over_base = forgetting.apart(HERE, "uniform", None, forgetful)
    assert over_base["bbh"] == pytest.approx([GRID[2] + rise for rise in RISES])
    assert forgetting.apart(HERE, "dense", None, forgetful) == {}


def test_the_page_shows_rises_and_differences_with_intervals(forgetful):
    text = report.questions(forgetful).partition("Forgetting")[2].partition("Routers")[0]
    rise, beside_lora, beside_uniform = text.split("Forgetting, ")
    flat = f"+{GRID[2]:.3f} ± 0.00"
    assert f"| `uniform` | 5 | +0.203 ± 0.08 | {flat} |" in rise
    assert f"| `lora-r40` | 5 | {flat} | {flat} |" in rise
    low, high = mean_interval(RISES)
    nought = "+0.00 (+0.00 to +0.00)"
    assert f"| `uniform` | 5 | +0.20 ({low:+.2f} to {high:+.2f}) | {nought} |" in beside_lora
    assert "`lora-r40` | 5" not in beside_lora and "`uniform` | 5" not in beside_uniform
    assert f"| `lora-r40` | 5 | -0.20 ({-high:+.2f} to {-low:+.2f}) | {nought} |" in beside_uniform


def test_the_page_counts_the_intervals_without_nought(forgetful):
    add(forgetful, "dense", 1.1)
    add(forgetful, "eva", 1.1)
    del forgetful[HERE.cell("eva", GRID[2], 4).key]  # not all of its seeds
    said = "Intervals without 0 among the 4 differences to `lora-r40` that have all seeds: 1 (by"
    assert said in " ".join(forgetting.notes(HERE, forgetful))
    assert said in report.questions(forgetful)
    answer = conclusions.answer(forgetful).splitlines()[4]
    assert "With the mixture, against the LoRA: bbh +0.20 (+0.10 to +0.30), text" in answer
    assert said in answer and "On " not in answer
    gemma = {
        key.replace("smollm2", "gemma3"): line | {"base": "gemma3"}
        for key, line in forgetful.items()
    }
    answer = conclusions.answer(forgetful | gemma).splitlines()[4]
    rates = f"(rates {GRID[2]:g} and {GRID[2]:g})"
    told = f"On Gemma-3-270M: bbh +0.20 (+0.10 to +0.30), text +0.00 (+0.00 to +0.00) {rates}."
    assert answer.endswith(told)


def test_what_one_seed_says_has_no_interval(done):
    for seed in range(1, 5):
        del done[HERE.cell("uniform", GRID[2], seed).key]
    text = "\n".join(forgetting.tables(HERE, ["uniform"], done))
    assert "| `uniform` | 1 | +0.00 | +0.00 |" in text
    assert "Intervals" not in " ".join(forgetting.notes(HERE, done))
    assert conclusions.answer(done).splitlines()[4] == "5. **Forgetting.** Not run yet."


def test_forgetting_is_told_with_the_rate(done):
    (*_, said) = forgetting.notes(HERE, done)
    low, high = (f"+{rate:.2f} at {rate:g}" for rate in (GRID[0], GRID[-1]))
    assert f"(`lora-r40`, seed 0, bbh: {low}, {high})" in said
    del done[HERE.untrained().key]
    assert "Forgetting hangs" not in " ".join(forgetting.notes(HERE, done))
