"""What is said in words about plans and analyses."""

from dataclasses import replace

import pytest

from axolotl_alphalora.report.findings import Findings
from axolotl_alphalora.report.plan_sentences import summary
from axolotl_alphalora.report.quality_sentences import explain
from axolotl_alphalora.report.words import WARNING
from axolotl_alphalora.settings import MatrixQuality, QualitySettings
from axolotl_alphalora.spectral import unit_scores
from helpers.allocating import model, plan


def matrix(block, alpha, kind="mlp.up_proj", **changes):
    row = MatrixQuality(f"{block}.{kind}", (64, 64), alpha, 1.0, 0.05, 100, 200, 200)
    return replace(row, **changes)


def findings(matrices, estimator="xmin_peak", intervals=None):
    return Findings(
        QualitySettings(estimator), tuple(matrices), unit_scores(matrices), intervals or {}
    )


def blocks(*alphas, **changes):
    return [matrix(f"layers.{i}", alpha, **changes) for i, alpha in enumerate(alphas)]


def test_the_least_and_the_best_trained_block_are_named_with_their_experts():
    said = explain(findings(blocks(3.0, 5.0, 2.0)), {"layers.0": 3, "layers.1": 9, "layers.2": 1})
    assert said[0] == (
        "Least trained: layers.1 (alpha 5.000, 9 experts). "
        "Best trained: layers.2 (alpha 2.000, 1 expert)."
    )


@pytest.mark.parametrize(
    ("estimator", "quantization", "warned"),
    [("xmin_peak", "bnb 4-bit", True), ("hill", "bnb 4-bit", False), ("xmin_peak", None, False)],
)
def test_an_estimator_that_quantisation_misleads_is_warned_of(estimator, quantization, warned):
    found = replace(
        findings(blocks(3.0, 5.0, 2.0), estimator), description={"quantization": quantization}
    )
    said = [line for line in explain(found) if "dequantised weights (bnb 4-bit)" in line]
    assert [line.startswith(WARNING) for line in said] == [True] * warned


def test_stacked_weights_that_were_not_measured_are_counted():
    names = [f"layers.{i}.experts.down_proj" for i in range(3)]
    found = replace(findings(blocks(3.0, 5.0, 2.0)), description={"unmeasured": names})
    (said,) = [line for line in explain(found) if line.startswith("Not measured")]
    assert "3 stacked weights" in said
    assert "(layers.0.experts.down_proj and 2 more)" in said


def test_a_ranking_that_rests_on_noise_is_a_warning_with_the_figure():
    noisy = explain(findings(blocks(3.0, 3.1, 2.9, tail_size=20)))
    assert noisy[-1].startswith(f"{WARNING}the ranking of the blocks rests on noise: at most 0%")
    sound = explain(findings(blocks(3.0, 5.0, 2.0), "hill"))
    assert sound[-1].startswith("Ranking: 9")


def test_units_of_different_kinds_are_not_ranked_without_normalising():
    """Every fourth block of a hybrid model has attention where the others have another mixer."""
    hybrid = [
        row
        for i, alpha in enumerate((3.0, 5.0, 2.0, 4.0))
        for row in (
            matrix(f"layers.{i}", alpha),
            matrix(f"layers.{i}", 6.0, "self_attn.o_proj" if i == 3 else "linear_attn.out_proj"),
        )
    ]
    said = explain(findings(hybrid, "hill"))[-1]
    assert said.startswith(f"{WARNING}layers.0 and layers.3 hold layers of different kinds")
    assert said.endswith("Set `normalize: true`.")
    whole = findings(hybrid, "hill")
    equal = replace(whole, settings=replace(whole.settings, normalize=True))
    assert "different kinds" not in explain(equal)[-1]
    alone = [*blocks(3.0, 5.0, 2.0), matrix("lm_head", 4.0, "")]
    assert "different kinds" not in explain(findings(alone, "hill"))[-1]
    towers = [*blocks(3.0, 5.0), *(matrix(f"vision.{i}", 4.0, "fc") for i in range(2))]
    assert "different kinds" not in explain(findings(towers, "hill"))[-1]


def test_a_ranking_whose_tails_were_searched_for_is_judged_by_resampling_only():
    rows = blocks(3.0, 5.0, 2.0)
    assert "not judged yet" in explain(findings(rows))[-1]
    assert findings(rows).trust is None
    assert findings(rows, "hill").trust > 0.9
    tight = {block: (score - 0.1, score + 0.1) for block, score in unit_scores(rows).items()}
    assert "at most" not in explain(findings(rows, intervals=tight))[-1]


def test_how_it_was_judged_is_said():
    rows = blocks(3.0, 5.0, 2.0)
    wide = {f"layers.{i}": (1.5, 6.0) for i in range(3)}
    assert "--confidence" in explain(findings(rows))[-1]
    resampled = explain(findings(rows, intervals=wide))[-1]
    assert resampled.startswith(WARNING) and "Judged by resampling" in resampled
    assert "at most" not in resampled
    assert "overstates hill's errors" in explain(findings(rows, "hill", wide))[-1]


def test_poor_fits_are_named_and_the_rest_counted():
    rows = [*blocks(3.0, 5.0), *blocks(*[3.0] * 6, kind="mlp.down_proj", distance=0.3)]
    rows.append(matrix("layers.0", 4.0, "q_proj", tail_size=9))
    (poor,) = [line for line in explain(findings(rows)) if line.startswith("Poor fits")]
    assert "layers.0.mlp.down_proj (distance 0.30, tail 100)" in poor
    assert poor.endswith("; and 3 more.")
    assert "up_proj" not in poor


def test_a_kind_without_any_power_law_is_said_to_be_left_out():
    nothing = {"x_min": None, "distance": None, "tail_size": None, "note": "all zero"}
    rows = [*blocks(3.0, 4.0), *blocks(None, None, kind="k_proj", **nothing)]
    said = "\n".join(explain(findings(rows)))
    assert "Left out of every block" in said and "layers.1.k_proj (all zero)" in said
    assert "mean alpha of their kind" not in said


def test_a_kind_of_another_stack_stands_in_for_none():
    nothing = {"x_min": None, "distance": None, "tail_size": None, "note": "all zero"}
    vision = matrix("vision.blocks.0", None, "k_proj", **nothing)
    rows = [vision, matrix("vision.blocks.0", 4.0), *blocks(3.0, 4.0, kind="k_proj")]
    said = "\n".join(explain(findings(rows)))
    assert "Left out of every block" in said
    assert "mean alpha of their kind" not in said


def test_modules_are_called_so_where_they_are_what_is_ranked():
    rows = blocks(3.0, 5.0, 2.0)
    scores = {row.module: row.alpha for row in rows}
    found = replace(findings(rows, "hill"), scores=scores, granularity="module")
    said = explain(found, {"layers.1.mlp.up_proj": 9})
    assert said[0].startswith("Least trained: layers.1.mlp.up_proj (alpha 5.000, 9 experts).")
    assert "between the modules' alphas" in said[-1]
    equal = replace(found, scores=dict.fromkeys(scores, 3.0))
    assert explain(equal)[0] == "All 3 modules have the same alpha, 3.000."


def test_one_block_has_no_ranking():
    assert not [line for line in explain(findings(blocks(3.0))) if "anking" in line]


def test_a_control_names_the_units_that_have_none_to_change_places_with():
    shapes = model(4)
    del shapes["model.layers.0.self_attn.v_proj"]
    said = summary(plan("mola", shapes, options={"order": "opposite"}))[0]
    assert said.startswith("This plan is a control: the numbers of mola's plan, dealt the other")
    assert said.endswith(
        " model.layers.0 kept the number by score, since no other unit has the same shapes."
    )
    assert "kept" not in summary(plan("mola", options={"order": "opposite"}))[0]
