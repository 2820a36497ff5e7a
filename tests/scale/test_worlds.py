"""The worlds of ranks that the other tests here run in."""

import pytest
import torch
import torch.distributed as dist

from helpers.worlds import in_a_world


def sums(folder):
    total = torch.tensor([dist.get_rank() + 1.0])
    dist.all_reduce(total)
    (folder / f"rank-{dist.get_rank()}").write_text(f"{total.item()} of {dist.get_world_size()}")


def test_ranks_work_together(tmp_path):
    error = tmp_path / "error.txt"
    assert in_a_world(2, tmp_path / "store", lambda: sums(tmp_path), error) == [0, 0]
    assert not error.exists()
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)] == 2 * ["3.0 of 2"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_is_told_of(tmp_path, rank):
    def work():
        if dist.get_rank() == rank:
            raise ValueError("this one")

    error = tmp_path / "run" / "error.txt"
    assert in_a_world(2, tmp_path / "store", work, error)[rank] == 1
    assert f"rank {rank}: Traceback" in error.read_text() and "this one" in error.read_text()
