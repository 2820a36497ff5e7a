"""Looking rows up in a prepared dataset."""

from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from axolotl_alphalora.plugin.data import contained, row_key


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 2), st.sampled_from([-100, 1])), min_size=1, max_size=4),
        max_size=12,
    ),
    st.integers(0, 11),
)
def test_looking_rows_up_agrees_with_a_plain_loop(rows, first):
    columns = {
        "input_ids": [[token for token, _ in row] for row in rows],
        "labels": [[label for _, label in row] for row in rows],
    }
    # Backwards, a selection keeps the whole table and indices into it.
    held = Dataset.from_dict(columns).select(range(len(rows) - 1, first - 1, -1))
    pairs = list(zip(columns["input_ids"], columns["labels"], strict=True))
    pairs.append(([0, 1, 2], [1, 1, 1]))
    expected = {row_key(*pair) for pair in pairs if pair in pairs[first:-1]}
    assert contained(held, {row_key(*pair) for pair in pairs}) == expected
