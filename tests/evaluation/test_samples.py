"""Rows of a JSON lines file, as tokens and labels."""

import json

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from axolotl_alphalora.evaluation import read_rows
from helpers.models import byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    """One token for each byte; the template marks turns."""
    fast = byte_tokenizer()
    fast.pad_token = "</s>"
    fast.add_tokens(["<|"], special_tokens=True)
    fast.chat_template = (
        "{% for m in messages %}<|{{ m.role }}:{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant:{% endif %}"
    )
    return fast


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def answer(sample, tokenizer):
    """What has labels, as text."""
    labels = sample.inputs["labels"][0]
    kept = labels[labels != -100]
    assert kept.equal(sample.inputs["input_ids"][0][labels != -100])
    return tokenizer.decode(kept)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "abc"}, "abc"),
        ({"prompt": "two and two is ", "completion": "four"}, "four</s>"),
        ({"instruction": "Say", "input": "x", "output": "yes"}, "yes</s>"),
        (
            {
                "messages": [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": "ho"},
                    {"role": "user", "content": "hm"},
                    {"role": "assistant", "content": "ha"},
                ]
            },
            "ha</s>",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": "ho"},
                    {"role": "user", "content": "hm"},
                ]
            },
            "ho</s>",
        ),
        ({"prompt": "two ", "completion": "four</s>"}, "four</s>"),
        ({"prompt": "two</s>", "completion": "four"}, "four</s>"),
        ({"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}, None),
    ],
)
def test_labels_are_on_what_the_model_is_to_say(tmp_path, tokenizer, row, said):
    (sample,) = read_rows(write(tmp_path / "rows.jsonl", row), tokenizer, 4)
    assert sample.inputs["input_ids"].shape == sample.inputs["labels"].shape
    if said is None:
        assert sample.inputs["labels"].tolist() == [[-100, -100, 7]]
    else:
        assert answer(sample, tokenizer) == said


def test_a_prompt_that_ends_in_a_blank_keeps_the_whole_answer(tmp_path, tokenizer):
    """A blank and the word after it may be one token of the whole text."""
    tokens = tokenizer.backend_tokenizer
    merged = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="</s>")
    merged.add_tokens([" four"])
    row = {"prompt": "two and two is ", "completion": "four"}
    (sample,) = read_rows(write(tmp_path / "rows.jsonl", row), merged, 1)
    assert answer(sample, merged) == "four</s>"


def test_a_template_that_thinks_before_it_answers_keeps_the_whole_answer(tmp_path, tokenizer):
    """The generation prompt holds more than the template repeats before a finished answer."""
    thinking = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>"
    )
    thinking.chat_template = tokenizer.chat_template.replace(
        "<|assistant:{% endif %}", "<|assistant:<think>{% endif %}"
    )
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "one two"}]
    path = write(tmp_path / "rows.jsonl", {"messages": messages})
    (sample,) = read_rows(path, thinking, 1)
    assert answer(sample, thinking) == "one two</s>"


def test_lines_end_at_line_ends_alone(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    text = "a\u2028b\u0085c"
    path.write_text("\ufeff" + json.dumps({"text": text}, ensure_ascii=False) + "\r\n")
    (sample,) = read_rows(path, tokenizer, 1)
    assert answer(sample, tokenizer) == text


def test_rows_are_shared_out_over_tasks_and_the_seed_decides(tmp_path, tokenizer):
    rows = [{"text": f"a {i}", "task": "many"} for i in range(20)]
    rows += [{"text": f"b {i}", "task": "few"} for i in range(2)]
    path = write(tmp_path / "rows.jsonl", *rows)
    found = read_rows(path, tokenizer, 8, seed=1)
    assert [sample.task for sample in found] == ["many"] * 6 + ["few"] * 2

    def texts(samples):
        return [tokenizer.decode(sample.inputs["input_ids"][0]) for sample in samples]

    assert texts(found) == texts(read_rows(path, tokenizer, 8, seed=1))
    assert texts(found) != texts(read_rows(path, tokenizer, 8, seed=2))
    assert len(set(texts(found))) == 8


def test_long_rows_are_cut_and_those_without_a_label_left_are_not_used(tmp_path, tokenizer):
    long = {"prompt": "x" * 50, "completion": "y"}
    path = write(tmp_path / "rows.jsonl", long, {"text": "z" * 50})
    with pytest.warns(match=r"1 rows have no token to predict within the first 10 tokens \(--seq"):
        (sample,) = read_rows(path, tokenizer, 4, sequence_len=10)
    assert sample.inputs["input_ids"].shape == (1, 10)


def test_others_are_drawn_for_rows_that_cannot_be_used(tmp_path, tokenizer):
    """Too long ones and those that are there twice: each task gets its share all the same."""
    rows = [{"prompt": "x" * 50, "completion": str(i), "task": "long"} for i in range(6)]
    rows += [{"text": f"a{i % 4}", "task": "long"} for i in range(12)]
    rows += [{"text": f"b{i}", "task": "short"} for i in range(9)]
    path = write(tmp_path / "rows.jsonl", *rows)
    with pytest.warns(match="have no token to predict"):
        found = read_rows(path, tokenizer, 8, sequence_len=10)
    assert [sample.task for sample in found] == ["long"] * 4 + ["short"] * 4
    texts = [tuple(sample.inputs["input_ids"][0].tolist()) for sample in found]
    assert len(set(texts)) == 8


def test_an_end_that_the_row_itself_wrote_stays(tmp_path, tokenizer):
    path = write(tmp_path / "rows.jsonl", {"prompt": "two</s>", "completion": "four</s>"})
    (sample,) = read_rows(path, tokenizer, 4)
    assert tokenizer.decode(sample.inputs["input_ids"][0]).count("</s>") == 2


@pytest.mark.parametrize(("prompt", "ends"), [("two", 1), ("two</s>", 2)])
def test_an_end_that_the_tokenizer_adds_to_a_prompt_is_cut(tmp_path, prompt, ends):
    adds = byte_tokenizer()
    adds.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", adds.eos_token_id)]
    )
    assert adds(prompt)["input_ids"].count(adds.eos_token_id) == ends
    path = write(tmp_path / "rows.jsonl", {"prompt": prompt, "completion": "four"})
    (sample,) = read_rows(path, adds, 4)
    assert sample.inputs["input_ids"][0].eq(adds.eos_token_id).sum() == ends


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"txt": "b"}\n', "line 2: the row has txt, but one of these is needed"),
        ('{"text": "a"\n', "line 1 is not JSON"),
        ("[1]\n", "line 1 is no JSON object"),
        ("\n", "no row with a token to predict"),
        ('{"text": ""}\n', "no row with a token to predict"),
        ('{"instruction": "x", "output": null}\n', "line 1: "),
        ('{"messages": null}\n', "line 1: "),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', "line 1: no message of the role"),
        (
            '{"messages": [{"role": "assistant", "content": "a"}]}\n',
            "line 1: no message of the role 'assistant' follows another",
        ),
        (
            "".join(f'{{"text": "a", "task": "{task}"}}\n' for task in "abcde"),
            r"has 5 tasks \(column `task`\), more than the 4 rows",
        ),
        ('{"input_ids": [1, 2], "labels": [1]}\n', "line 1: 2 input_ids, but 1 labels"),
    ],
)
def test_bad_rows_are_named(tmp_path, tokenizer, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_rows(path, tokenizer, 4)


def test_messages_need_a_template(tmp_path, tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    path = write(tmp_path / "rows.jsonl", {"messages": [{"role": "user", "content": "a"}]})
    with pytest.raises(ValueError, match="line 1: .* no chat template"):
        read_rows(path, bare, 1)
