"""The study's bench on a tiny base model."""

import pytest
from transformers import AutoTokenizer

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
