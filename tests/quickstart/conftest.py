"""A quiet console, and a tiny random model whose tokenizer knows the quickstart's data."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from axolotl_alphalora.evaluation import prompt_text
from axolotl_alphalora.quickstart.rows import make_rows
from helpers.models import byte_tokenizer, save_tiny_model


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=100)


def printed(console: Console) -> str:
    return console.file.getvalue()


def tiny_tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    rows = make_rows()[0]
    return byte_tokenizer(
        (prompt_text(row) + row["output"] for row in rows), vocab_size=700, bos=bos
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_model(folder, tiny_tokenizer())
    return folder
