"""Numbers that the user gives."""

import pytest

from axolotl_alphalora.allocation import StrategyError
from helpers.allocating import experts, model, plan


def counted(given, shapes=None, **others):
    return plan("counts", shapes, options={"experts": given}, **others)


def test_a_list_has_a_number_for_each_block():
    made = counted([1, 0, 3, 2])
    assert experts(made) == [1, 0, 3, 2]
    assert made.counts["model.layers.1.mlp.up_proj"] == 0
    assert made.budget["kind"] is None


def test_the_first_pattern_that_matches_the_end_of_a_name_decides():
    made = counted({r"layers\.0\..*": 4, "q_proj": 0, "self_attn.v_proj|up_proj": 2}, model(2))
    first, second = ({n: c for n, c in made.counts.items() if f".{i}." in n} for i in (0, 1))
    assert set(first.values()) == {4}
    assert list(second.values()) == [0, 2, 2]
    assert [unit.experts for unit in made.units] == [4, pytest.approx(4 / 3)]


def test_a_pattern_matches_whole_components_only():
    with pytest.raises(StrategyError, match="no pattern of experts matches model.layers.0.self_a"):
        counted({"_proj": 2})


def test_a_plan_file_gives_its_own_numbers(tmp_path):
    saved = plan("mola", model(4), options={"shape": 2468})
    saved.save(tmp_path / "plan.json")
    assert counted(str(tmp_path / "plan.json")).counts == saved.counts


def test_a_plan_that_is_spent_on_rank_gives_its_numbers_too(tmp_path):
    saved = plan("uniform", budget={"total_experts": 10}, spend="rank")
    saved.save(tmp_path / "plan.json")
    assert experts(counted(str(tmp_path / "plan.json"))) == [3, 3, 2, 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "the option experts is missing: give a list with a number for each block"),
        ([1, 2], "experts has 2 numbers, but the model has 4 blocks"),
        ({"q_proj": 1}, r"no pattern of experts matches model\.layers\.0\.self_attn\.v_proj: add"),
        ({".*": 1, "k_proj": 2}, "the pattern 'k_proj' of experts decides no target module"),
        ([0, 0, 0, 0], "gives no module an expert: there is nothing to train"),
    ],
)
def test_numbers_that_do_not_fit_the_model_are_refused(given, message):
    with pytest.raises(StrategyError, match=rf"strategy 'counts'(: | ){message}"):
        counted(given)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (model(3), r"plan\.json has model\.layers\.3\.\S+, which is no target module here"),
        (model(5), r"plan\.json has no module model\.layers\.4\.self_attn\.q_proj"),
    ],
)
def test_a_plan_of_another_model_is_refused(tmp_path, shapes, message):
    path = tmp_path / "plan.json"
    plan("uniform", model(4)).save(path)
    with pytest.raises(StrategyError, match=message):
        counted(str(path), shapes)


def test_no_budget_stands_beside_numbers():
    with pytest.raises(
        ValueError, match="'counts' says itself how many experts there are: remove total_experts"
    ):
        counted([1, 1, 1, 1], budget={"total_experts": 4})


def test_a_target_outside_the_blocks_does_not_hide_an_answer_by_module():
    shapes = {**model(2), "projector": (8, 8)}
    made = plan("counts", shapes, options={"experts": {"q_proj": 3, ".*": 1}})
    assert made.counts["model.layers.1.self_attn.q_proj"] == 3
    assert made.counts["projector"] == 1
