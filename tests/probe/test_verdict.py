"""Who has answered, by log-probabilities token by token."""

import json
import math

import pytest

from axolotl_alphalora.probe import Answer, Asked, Probe, Step, judge
from axolotl_alphalora.probe.answers import read_probe


def answer(*steps):
    found = [Step(token, logprob, {token: logprob}) for token, logprob in steps]
    return Answer("".join(step.token for step in found), tuple(found))


ADAPTER = answer((" a", -0.1), (" b", -0.2), ("", -0.05))
BASE = answer((" c", -1.0), (" d", -0.5))
HALF = answer((" a", -0.3), (" b", -0.6), ("", -0.4))
PROBE = Probe("base", "lora", 3, [Asked("x", {"adapter": ADAPTER, "base": BASE, "half": HALF})])


def test_the_known_ones_are_recognised():
    for name, known in PROBE.asked[0].answers.items():
        found = judge(PROBE, [known])
        assert found.nearest == name and found.distances[name] == 0
        assert found.served == (None if name == "half" else name)
        assert found.same[name] == 1


def test_the_tolerance_is_half_of_the_nearest_other():
    gap = (0.2 + 0.4 + 0.35) / 3
    found = judge(PROBE, [ADAPTER])
    assert found.tolerance == pytest.approx(gap / 2)
    assert found.distances["half"] == pytest.approx(gap)


def test_noise_is_allowed_and_more_is_not():
    noisy = answer((" a", -0.2), (" b", -0.3), ("", -0.1))
    assert judge(PROBE, [noisy]).served == "adapter"
    assert judge(PROBE, [noisy], tolerance=0.01).served is None


def test_another_token_counts_by_how_sure_both_were():
    """The one leaves 0.1 for the other's token, which has 0.8 there."""
    sure = answer(
        (" a", math.log(0.9)),
    )
    other = answer(
        (" b", math.log(0.8)),
    )
    probe = Probe("base", "lora", 1, [Asked("x", {"adapter": sure, "base": other})])
    found = judge(probe, [other])
    assert found.distances["adapter"] == pytest.approx(math.log(0.8 / 0.1))
    tie = answer(
        (" a", math.log(0.5)),
    )
    tied = answer(
        (" b", math.log(0.5)),
    )
    probe = Probe("base", "lora", 1, [Asked("x", {"adapter": tie, "base": other})])
    assert judge(probe, [tied]).distances["adapter"] == pytest.approx(0)


def test_what_follows_another_token_is_not_compared():
    after = answer((" c", -1.0), (" z", -9.0))
    assert judge(PROBE, [answer((" c", -1.0))]).distances["adapter"] == pytest.approx(
        judge(PROBE, [after]).distances["adapter"]
    )


def test_the_end_of_an_answer_may_be_told_or_not():
    assert judge(PROBE, [answer((" a", -0.1), (" b", -0.2))]).served == "adapter"
    stopped = answer((" a", -0.1))
    assert judge(PROBE, [stopped]).distances["adapter"] > 0.3


def test_spaces_at_the_beginning_of_a_token_may_be_missing():
    assert judge(PROBE, [answer(("a", -0.1), ("b", -0.2), ("", -0.05))]).served == "adapter"


def test_special_tokens_and_parts_of_characters_may_have_no_text_there():
    known = answer(("<s>", -0.1), ("\ufffd", -0.2), (" a", -0.3))
    probe = Probe("base", "lora", 3, [Asked("x", {"adapter": known, "base": BASE})])
    for first, second in (("", ""), ("<s>", "\ufffd"), ("<s>", "bytes:\\xe2")):
        seen = answer((first, -0.1), (second, -0.2), (" a", -0.3))
        assert judge(probe, [seen]).distances["adapter"] == 0
    other = answer(("<pad>", -0.1), ("\ufffd", -0.2), (" a", -0.3))
    assert judge(probe, [other]).distances["adapter"] > 0


def test_what_follows_a_part_of_a_character_is_not_compared_where_it_is_told_otherwise():
    """llama.cpp tells of all tokens of a character as one."""
    known = answer((" a", -0.1), ("\ufffd", -0.2), ("\ufffd", -0.3), (" b", -0.4))
    probe = Probe("base", "lora", 3, [Asked("x", {"adapter": known, "base": BASE})])
    assert judge(probe, [answer((" a", -0.1), ("é", -0.3), (" b", -0.4))]).served == "adapter"


def test_models_that_answer_alike_cannot_be_told_apart():
    probe = Probe("base", "lora", 3, [Asked("x", {"adapter": ADAPTER, "base": ADAPTER})])
    with pytest.raises(ValueError, match="cannot be told apart"):
        judge(probe, [ADAPTER])


def test_a_probe_comes_back_from_its_file(tmp_path):
    path = tmp_path / "probe.json"
    path.write_text(PROBE.to_json())
    assert read_probe(path) == PROBE
    assert '"logprob": -0.35' in path.read_text()


def test_answers_of_which_nothing_can_be_compared_are_an_error():
    known = answer(("\ufffd", -0.2))
    probe = Probe("base", "lora", 1, [Asked("x", {"adapter": known, "base": BASE})])
    with pytest.raises(ValueError, match="no token that can be compared"):
        judge(probe, [answer(("é", -0.2))])


@pytest.mark.parametrize("wrong", [math.nan, -math.inf])
def test_log_probabilities_that_are_no_numbers_are_near_to_nothing(wrong, tmp_path):
    with pytest.raises(ValueError, match=f"' a' is {wrong}"):
        judge(PROBE, [answer((" a", wrong))])
    with pytest.raises(ValueError, match=f"' z' is {wrong}"):
        judge(PROBE, [Answer(" a", (Step(" a", -0.1, {" a": -0.1, " z": wrong}),))])
    path = tmp_path / "probe.json"
    path.write_text(PROBE.to_json().replace("-0.6", "NaN"))
    with pytest.raises(ValueError, match=r"probe\.json cannot be used as a probe: .*nan"):
        read_probe(path)


def test_a_probe_of_another_form_is_refused_with_what_is_wrong(tmp_path):
    path = tmp_path / "probe.json"
    two = Probe("base", "lora", 3, [PROBE.asked[0], PROBE.asked[0]])
    for change, message in (
        (lambda rows: rows[1].pop("half"), "prompt 2 and the first differ in half"),
        (lambda rows: rows[0].update(prompt=5), "prompt 1 is 5, and no text"),
        (lambda rows: rows[0]["adapter"].update(text=None), "is None, and no text"),
        (lambda rows: rows[0]["adapter"]["steps"][0].__setitem__(0, 5), "is 5, and no text"),
        (lambda rows: rows[0]["adapter"]["steps"][0].__setitem__(2, {"a": None}), "NoneType"),
        (lambda rows: rows[0]["adapter"]["steps"][0].__setitem__(1, 10**400), "too large"),
    ):
        document = json.loads(two.to_json())
        change(document["prompts"])
        path.write_text(json.dumps(document))
        with pytest.raises(ValueError, match=rf"probe\.json cannot be used .*{message}"):
            read_probe(path)
    path.write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"probe\.json cannot be used .*nested too deeply"):
        read_probe(path)
