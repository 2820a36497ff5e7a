"""Answers: which options a row has, and which of them is the likeliest."""

import pytest

from benchmarks.study import answers
from benchmarks.study.answers import answered, asked, number
from benchmarks.study.measure import row_losses
from benchmarks.study.rows import draw, encode
from helpers.studying import sums

LETTERS = [(letter, letter) for letter in ("(A)", "(B)", "(C)")]


def test_listed_options_are_those_of_the_question():
    row = {"instruction": "Which? (A) one (B) two", "output": "(B)"}
    assert asked(row, LETTERS) == ["(A)", "(B)"]
    words = [("no", "the answer is no"), ("yes", "the answer is yes")]
    assert asked({"instruction": "Well?", "output": "the answer is no"}, words) == [
        "the answer is no",
        "the answer is yes",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [("so 5\n#### 1,234", 1234.0), ("#### -2.5.", -2.5), ("it is 7", None), ("#### $", None)],
)
def test_the_number_after_the_marks(text, value):
    assert number(text) == value


def test_the_likeliest_option_is_the_answer(make_bench, tokenizer):
    training = [
        {"instruction": f"Say {word}.", "output": word, "answer": word, "task": "say"}
        for word in ("yes", "no", "maybe")
    ]
    rows = draw(training, 3, tokenizer)
    model = make_bench().model
    found = answered(model, tokenizer, "bbh", rows, training, "cpu")
    right = 0
    for row in rows:
        losses = {
            word: row_losses(model, [encode({**row.source, "output": word}, tokenizer)], "cpu")
            for word in ("maybe", "no", "yes")
        }
        right += min(losses, key=losses.get) == row.source["output"]
    assert found["rows"] == 3 and found["right"] == right and found["by"] == "likelihood"
    assert 0 <= found["interval"][0] < found["interval"][1] <= 1


def test_greedy_answers_do_not_depend_on_padding(make_bench, tokenizer, monkeypatch):
    """A model that has learned the rows by heart answers them, however they are batched."""
    model = make_bench().model
    rows = draw(sums(6), 6, tokenizer)
    said = []
    decode = type(tokenizer).batch_decode
    monkeypatch.setattr(
        type(tokenizer),
        "batch_decode",
        lambda self, ids, **options: said.extend(found := decode(self, ids, **options)) or found,
    )
    monkeypatch.setattr(answers, "NEW_TOKENS", 6)
    for size in (1, 6):
        monkeypatch.setattr(answers, "BATCH", size)
        answered(model, tokenizer, "gsm8k", rows, [], "cpu", 6)
    assert len(said) == 12 and said[:6] == said[6:]


def test_none_are_asked_of_gsm8k_on_a_cpu(make_bench, tokenizer):
    found = answered(None, tokenizer, "gsm8k", [], [], "cpu")
    assert found["rows"] == 0 and "--answers" in found["why"]
