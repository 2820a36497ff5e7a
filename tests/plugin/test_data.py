"""Data of every shape: only real tokens count in the balance, and only targets in its weight."""

import json
import shutil

import pytest

from helpers.first_step import (
    assert_routers_got_the_balance,
    real_tokens,
    seen,
    sequences,
    token_shares,
)

COEFFICIENT = 0.5
BLOCK = {"allocation": "uniform", "experts_per_block": 3, "aux_loss_coef": COEFFICIENT}
ROWS = {
    "chat": lambda i: {
        "messages": [
            {"role": "user", "content": f"Say {i}"},
            {"role": "assistant", "content": f"yes {i} " * (1 + i % 4)},
            {"role": "user", "content": "Again"},
            {"role": "assistant", "content": "yes"},
        ]
    },
    "text": lambda i: {"text": f"word{i} " * (1 + i * 7 % 9)},
    "segments": lambda i: {
        "segments": [
            {"label": False, "text": f"Say {i}: "},
            {"label": True, "text": f"yes {i} " * (1 + i % 4)},
            {"label": False, "text": "and "},
            {"label": True, "text": "no"},
        ]
    },
}
KINDS = {
    "chat": {"type": "chat_template", "roles_to_train": ["assistant"]},
    "text": {"type": "completion", "field": "text"},
    "segments": {"type": "input_output"},
}


def dataset(folder, name) -> dict:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(ROWS[name](i)) + "\n" for i in range(24)))
    return {"path": str(file), "ds_type": "json", **KINDS[name]}


def one_step(host, folder, alone=True, **changes):
    settings = {
        "dataset_prepared_path": str(folder / "prepared"),
        "val_set_size": 0,
        "eval_steps": ...,
        "max_steps": 1,
        "save_steps": 1,
        "max_grad_norm": 1e9,
        "alphalora": BLOCK,
    }
    run = host.train(folder, **(settings | changes))
    passes = seen(run)["passes"]
    base = changes.get("base_model", host.workspace / "tiny")
    assert_routers_got_the_balance(run, base, COEFFICIENT, token_shares(passes), alone)
    return passes


def trained_on(passes) -> int:
    return sum(int(p["labels"].ne(-100).sum()) for p in passes)


@pytest.mark.works("Data", "sample packing", "position ids respected, packed rows are not padding")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_sequences_are_balanced_as_if_each_were_alone(host, tmp_path, attention):
    passes = one_step(
        host,
        tmp_path,
        sample_packing=True,
        pad_to_sequence_len=True,
        sequence_len=512,
        datasets=[dataset(tmp_path, "segments")],
        attn_implementation=attention,
    )
    for each in passes:
        assert "attention_mask" not in each
        assert len(sequences(each)) > 2 * len(each["input_ids"])
        assert sum(map(len, sequences(each))) < each["input_ids"].numel(), "there is padding too"


@pytest.mark.works("Data", "padding on the left")
def test_padding_on_the_left_does_not_count(host, tmp_path):
    base = tmp_path / "left"
    shutil.copytree(host.workspace / "tiny", base)
    file = base / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left"}))
    passes = one_step(host, tmp_path, base_model=str(base))
    masks = [row for p in passes for row in p["attention_mask"]]
    assert any(mask[0] == 0 and mask[-1] == 1 for mask in masks)


@pytest.mark.works("Data", "padding on the right")
@pytest.mark.works("Trainers", "supervised fine-tuning")
def test_padding_on_the_right_does_not_count(host, tmp_path):
    passes = one_step(host, tmp_path)
    first, second = token_shares(passes)
    assert first != second, "the balance of each micro-batch is weighed by its targets"
    masks = [row for p in passes for row in p["attention_mask"]]
    assert any(mask[0] == 1 and mask[-1] == 0 for mask in masks)


@pytest.mark.works("Data", "completion masks (`input_output`, `train_on_inputs`)")
def test_masked_segments_are_routed_but_are_no_targets(host, tmp_path):
    passes = one_step(host, tmp_path, datasets=[dataset(tmp_path, "segments")])
    for each in passes:
        assert each["labels"].ne(-100).sum() < each["attention_mask"].sum()


@pytest.mark.works("Data", "multi-turn chats (`chat_template`)")
def test_the_turns_of_a_chat(host, tmp_path):
    passes = one_step(host, tmp_path, datasets=[dataset(tmp_path, "chat")], chat_template="chatml")
    labels = [row for p in passes for row in p["labels"]]
    starts = [int(((row[1:] != -100) & (row[:-1] == -100)).sum()) for row in labels]
    assert all(count >= 2 for count in starts), "both answers of every row are targets"


@pytest.mark.works("Data", "plain text (`completion`)")
def test_plain_text(host, tmp_path):
    passes = one_step(host, tmp_path, datasets=[dataset(tmp_path, "text")])
    for each in passes:
        assert each["labels"].ne(-100).sum() == each["attention_mask"].sum()


@pytest.mark.works("Data", "several datasets")
def test_several_datasets(host, tmp_path):
    kinds = [dataset(tmp_path, name) for name in ("chat", "text", "segments")]
    assert trained_on(one_step(host, tmp_path, datasets=kinds, chat_template="chatml")) > 0


@pytest.mark.works("Data", "`streaming: true`")
def test_a_streamed_dataset(host, tmp_path):
    assert trained_on(one_step(host, tmp_path, streaming=True)) > 0


@pytest.mark.works("Data", "`pretraining_dataset`, packed and streamed")
def test_streamed_text_for_pretraining(host, tmp_path):
    (tmp_path / "text").mkdir()
    shutil.move(dataset(tmp_path, "text")["path"], tmp_path / "text" / "train.jsonl")
    data = {"path": str(tmp_path / "text"), "split": "train", "type": "pretrain"}
    passes = one_step(
        host,
        tmp_path,
        datasets=...,
        pretraining_dataset=[data],
        sample_packing=True,
        micro_batch_size=1,
        alone=False,  # the host lets the texts of a row see each other
    )
    assert all(each["attention_mask"].all() for each in passes)
    assert any(not real_tokens(each).all() for each in passes), "there is padding all the same"
