"""Which data samples can be drawn from, and how they are shared out over tasks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_alphalora.plugin.samples import UNSAMPLED, UNSAMPLED_TYPES, check_data, share_out


@pytest.mark.parametrize("name", UNSAMPLED)
def test_keys_that_rule_samples_out_are_refused_by_name(name):
    cfg = {"datasets": [{"path": "a", "type": "alpaca"}]}
    check_data(cfg | {name: None})
    check_data(cfg | {name: False})
    with pytest.raises(ValueError, match=f"`{name}`: .*(?s:.*)alphalora plan sft.yml") as raised:
        check_data(cfg | {name: True})
    assert str(raised.value).count("\n  - ") == 1


def test_types_of_data_that_rule_samples_out_are_refused_by_name():
    with pytest.raises(ValueError, match="`datasets`: there are none"):
        check_data({"datasets": []})
    for name in UNSAMPLED_TYPES:
        entries = [{"path": "a", "type": {"format": "{input}"}}, {"path": "b", "type": name}]
        with pytest.raises(ValueError, match=rf"`datasets\[1\].type: {name}`"):
            check_data({"datasets": entries})


@given(
    st.integers(0, 40),
    st.dictionaries(st.text(max_size=3), st.integers(0, 9) | st.just(float("inf")), max_size=6),
)
def test_shares_are_as_even_as_the_tasks_allow(count, available):
    shares = share_out(count, available)
    assert list(shares) == list(available)
    assert sum(shares.values()) == min(count, sum(available.values()))
    assert all(shares[task] <= available[task] for task in shares)
    most = max(shares.values(), default=0)
    assert all(shares[t] >= most - 1 or shares[t] == available[t] for t in shares)
