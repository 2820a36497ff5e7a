"""How samples are shared out over tasks."""

import math

from hypothesis import given
from hypothesis import strategies as st

from axolotl_alphalora.samples import share_out


@given(
    st.integers(0, 30),
    st.lists(st.one_of(st.integers(0, 12), st.just(math.inf)), min_size=1, max_size=6),
)
def test_shares_are_as_even_as_what_the_tasks_have_allows(count, available):
    tasks = {str(index): most for index, most in enumerate(available)}
    shares = share_out(count, tasks)
    assert list(shares) == list(tasks)
    assert sum(shares.values()) == min(count, sum(available))
    assert all(0 <= shares[task] <= tasks[task] for task in tasks)
    for task, share in shares.items():
        larger = [other for other in shares if shares[other] > share + 1]
        assert not larger or share == tasks[task]
    # What is left over goes to earlier tasks first.
    free = [shares[task] for task in tasks if shares[task] < tasks[task]]
    assert free == sorted(free, reverse=True)


def test_the_shares_of_three_tasks():
    assert share_out(9, {"few": 2, "b": 10, "c": math.inf}) == {"few": 2, "b": 4, "c": 3}
    assert share_out(0, {"a": 1}) == {"a": 0}
