import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axolotl_alphalora.sensitivity import split_batch

lengths = st.lists(st.integers(2, 6), min_size=1, max_size=5)


def _rows(sizes):
    """Sequences of the given lengths; no token occurs twice."""
    start, rows = 1, []
    for size in sizes:
        rows.append(torch.arange(start, start + size))
        start += size
    return rows


def _ids(samples):
    return [sample.inputs["input_ids"][0].tolist() for sample in samples]


@given(sizes=lengths, left=st.booleans())
def test_padding_is_trimmed_on_either_side(sizes, left):
    rows, widest = _rows(sizes), max(sizes)
    batch = {"input_ids": [], "labels": [], "attention_mask": []}
    for row in rows:
        for key, value, fill in (
            ("input_ids", row, 0),
            ("labels", row, -100),
            ("attention_mask", torch.ones_like(row), 0),
        ):
            padding = torch.full((widest - len(row),), fill)
            batch[key].append(torch.cat([padding, value] if left else [value, padding]))
    samples = split_batch({key: torch.stack(value) for key, value in batch.items()}, "qa")
    assert _ids(samples) == [row.tolist() for row in rows]
    assert all(sample.task == "qa" for sample in samples)
    assert all(bool(sample.inputs["attention_mask"].all()) for sample in samples)


@pytest.mark.parametrize(
    "marks", ["position_ids", "attention_mask", "both", "numbered and squashed"]
)
@given(sizes=lengths, padding=st.integers(0, 3))
def test_a_packed_row_is_cut_into_its_sequences(marks, sizes, padding):
    rows = _rows(sizes)
    ids = torch.cat([*rows, torch.zeros(padding, dtype=torch.long)])
    labels = torch.cat([*rows, torch.full((padding,), -100)])
    positions = torch.cat([*(torch.arange(size) for size in sizes), torch.arange(padding)])
    numbers = torch.cat(
        [
            *(torch.full((size,), i + 1) for i, size in enumerate(sizes)),
            torch.zeros(padding, dtype=torch.long),
        ]
    )
    extra = {
        "position_ids": {"position_ids": positions},
        "attention_mask": {"attention_mask": numbers},
        "both": {"position_ids": positions, "attention_mask": numbers},
        "numbered and squashed": {
            "position_ids": torch.arange(len(ids)),
            "attention_mask": numbers,
        },
    }[marks]
    batch = {"input_ids": ids, "labels": labels, **extra}
    samples = split_batch({key: value[None] for key, value in batch.items()})
    assert _ids(samples) == [row.tolist() for row in rows]
    for sample, row in zip(samples, rows, strict=True):
        assert {key: value.shape for key, value in sample.inputs.items()} == {
            key: (1, len(row)) for key in batch
        }
        if marks in ("position_ids", "both"):
            assert sample.inputs["position_ids"][0].tolist() == list(range(len(row)))


def test_sequences_without_a_predicted_label_are_left_out():
    labels = torch.tensor([[5, -100, -100, 7, 8, 9]])
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 7, 8, 9]]),
        "labels": labels,
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]),
    }
    assert _ids(split_batch(batch)) == [[7, 8, 9]]
    assert split_batch({**batch, "labels": torch.full_like(labels, -100)}) == []


def test_samples_do_not_share_the_batch():
    batch = {"input_ids": torch.arange(6)[None], "labels": torch.arange(6)[None]}
    (sample,) = split_batch(batch)
    batch["input_ids"].zero_()
    assert _ids([sample]) == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {"pixel_values": torch.zeros(1, 3, 8, 8)},
            r"`pixel_values` of the batch is \[1, 3, 8, 8\]",
        ),
        ({"num_items_in_batch": 4}, "`num_items_in_batch` of the batch is int"),
        ({"attention_mask": torch.tensor([[1, 1, 0, 0, 1, 1]])}, "Row 0 .* from token 2 to 3"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused(extra, message):
    batch = {"input_ids": torch.arange(6)[None], "labels": torch.arange(6)[None]}
    with pytest.raises(ValueError, match=message):
        split_batch({**batch, **extra})


def test_a_batch_without_labels_is_refused():
    with pytest.raises(ValueError, match="no `labels`, only input_ids"):
        split_batch({"input_ids": torch.arange(6)[None]})
