"""The study's bench on a tiny base model."""

import pytest
from transformers import AutoTokenizer

from benchmarks.study.cells import GRID
from helpers.study_lines import line
from helpers.studying import bench, save_base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """Directory of a tiny base model."""
    return save_base(tmp_path_factory.mktemp("study") / "base")


@pytest.fixture(scope="session")
def tokenizer(tiny_base):
    return AutoTokenizer.from_pretrained(tiny_base)


@pytest.fixture
def make_bench(tiny_base, tokenizer):
    """Makes what methods are built on."""
    return lambda **options: bench(tiny_base, tokenizer, **options)


@pytest.fixture
def done():
    """Two curves, and five seeds of each method: the mixture is worse by a tenth."""
    found = [line("untrained", 0.0, 0, 2.0)]
    for method, least in (("lora-r40", 1.0), ("uniform", 1.1)):
        found += [line(method, r, 0, least + 0.05 * abs(i - 2)) for i, r in enumerate(GRID)]
        found += [line(method, GRID[2], seed, least + 0.001 * seed) for seed in range(1, 5)]
    return {one["cell"]: one for one in found}
