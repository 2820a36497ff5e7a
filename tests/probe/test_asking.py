"""Greedy answers of a model, against generation by transformers."""

import pytest
import torch

from axolotl_alphalora.probe import ask_model, prompts_of
from axolotl_alphalora.probe.asking import _answer, _text
from axolotl_alphalora.probe.writing import scaled
from axolotl_alphalora.samples import Sample
from helpers.balancing import adapted
from helpers.models import byte_tokenizer, tiny_llama, word_tokenizer


@pytest.fixture(scope="module")
def model():
    return tiny_llama(initializer_range=0.3).eval()


def test_an_answer_is_what_generation_gives_with_its_log_probabilities(model):
    tokenizer = word_tokenizer()
    ids = tokenizer("w5 w9 w33", return_tensors="pt")["input_ids"]
    row = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=-1)[0]
    answer = ask_model(model, tokenizer, "w5 w9 w33", 6)
    assert answer.text == tokenizer.decode(row[3:], skip_special_tokens=True)
    scores = model(input_ids=row[None]).logits[0].log_softmax(-1)
    want = [float(scores[place - 1, row[place]]) for place in range(3, len(row))]
    assert [step.logprob for step in answer.steps] == pytest.approx(want, abs=1e-4)
    for step in answer.steps:
        assert len(step.top) == 5 and max(step.top.values()) == step.logprob
    assert answer.logprob == pytest.approx(sum(want), abs=1e-3)


def test_an_answer_ends_with_a_token_without_text(model, monkeypatch):
    tokenizer = word_tokenizer()
    second = ask_model(model, tokenizer, "w5 w9 w33", 6).steps[1].token.strip()
    end = tokenizer.convert_tokens_to_ids(second)
    monkeypatch.setattr(model.generation_config, "eos_token_id", [end])
    answer = ask_model(model, tokenizer, "w5 w9 w33", 6)
    assert [bool(step.token) for step in answer.steps] == [True, False]


def test_a_model_that_gives_nan_gives_no_answer():
    broken = tiny_llama().eval()
    broken.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="is nan"):
        ask_model(broken, word_tokenizer(), "w5 w9 w33", 6)


COMPLETIONS = {
    "no text": ({"text": None, "logprobs": {"tokens": ["a"], "token_logprobs": [-1.0]}}, "no text"),
    "no token": ({"logprobs": {"tokens": [5], "token_logprobs": [-1.0]}}, "is 5, and no text"),
    "a list": ({"logprobs": [1]}, "no log-probabilities"),
    "a number": ({"logprobs": 1}, "no log-probabilities"),
    "null": ({"logprobs": {"tokens": ["a"], "token_logprobs": [None]}}, "no log-probabilities"),
    "null beside": (
        {"logprobs": {"tokens": ["a"], "token_logprobs": [-1], "top_logprobs": [{"b": None}]}},
        "no log-probabilities",
    ),
    "null as for chats": (
        {
            "logprobs": {
                "content": [
                    {"token": "a", "logprob": -1, "top_logprobs": [{"token": "b", "logprob": None}]}
                ]
            }
        },
        "no log-probabilities",
    ),
    "NaN": ({"logprobs": {"tokens": ["a"], "token_logprobs": [float("nan")]}}, "of 'a' is nan"),
}


@pytest.mark.parametrize("case", COMPLETIONS)
def test_a_completion_of_another_form_is_an_error(case):
    choice, message = COMPLETIONS[case]
    with pytest.raises(ValueError, match=message):
        _answer({"choices": [{"text": "a", "finish_reason": "stop"} | choice]})


def test_a_token_keeps_its_first_space():
    tokenizer = byte_tokenizer(["hello world"] * 9)
    ids = tokenizer("hello world")["input_ids"]
    assert "".join(_text(tokenizer, token) for token in ids) == "hello world"


def test_scales_are_as_they_were_afterwards(model):
    routed = adapted(model).eval()
    ids = torch.tensor([[5, 9, 33]])
    with torch.no_grad():
        before = routed(input_ids=ids).logits
        with scaled(routed, 0.5):
            half = routed(input_ids=ids).logits
        with pytest.raises(ZeroDivisionError), scaled(routed, 2):
            1 / 0  # noqa: B018
        assert torch.equal(routed(input_ids=ids).logits, before)
    assert (half - before).abs().max() > 1e-3


def sample(ids, first):
    labels = [-100] * first + ids[first:]
    inputs = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}
    return Sample("data", inputs)


def test_prompts_are_what_comes_before_the_answers_and_from_all_rows():
    tokenizer = word_tokenizer(bos_token="w1")
    samples = [sample([1, 10 + i, 20, 30], 3) for i in range(8)] + [sample([1, 10, 20, 5], 3)]
    assert prompts_of(samples, tokenizer, 4) == [f"w{10 + i} w20" for i in (0, 2, 4, 6)]
    assert prompts_of([sample([5, 6, 7, 8], 0)], tokenizer) == ["w5 w6"]
    assert prompts_of([], tokenizer) == []
