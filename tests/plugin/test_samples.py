"""Samples of the run's data: the same tokens and labels as in the host's prepared datasets."""

import copy
import json
import random
from collections import Counter

import numpy as np
import pytest
import torch
from axolotl.integrations.base import BasePlugin, PluginManager
from axolotl.loaders import load_tokenizer
from axolotl.prompt_tokenizers import InstructionPromptTokenizingStrategy
from axolotl.utils.config import normalize_cfg_datasets, normalize_config, validate_config
from axolotl.utils.data import prepare_datasets
from axolotl.utils.dict import DictDefault
from datasets import ClassLabel, Dataset, DatasetDict

from axolotl_alphalora.plugin.samples import draw_samples
from helpers.models import byte_tokenizer, tiny_llama_config


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model's configuration and a tokenizer of one token per byte."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    tiny_llama_config(vocab_size=len(tokenizer), max_position_embeddings=512).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(autouse=True)
def no_workers(monkeypatch):
    """The host saves every dataset in a process of its own, which takes seconds."""
    save = Dataset.save_to_disk
    monkeypatch.setattr(
        Dataset, "save_to_disk", lambda self, path, num_proc=None, **keys: save(self, path, **keys)
    )


def alpaca(number: int, **columns) -> dict:
    answer = f"row {number}." + " more" * (number % 7)
    return {"instruction": f"Repeat {number}", "input": "", "output": answer, **columns}


def chat(number: int, **columns) -> dict:
    turns = [("user", f"Repeat {number}"), ("assistant", f"row {number}."), ("user", "Thanks")]
    return {"messages": [{"role": r, "content": c} for r, c in turns], **columns}


def with_tasks(make, count: int) -> list[dict]:
    return [make(i, task=["sums", "words", "dates"][i % 3]) for i in range(count)]


@pytest.fixture
def write(tmp_path):
    """Write rows to a file and return its entry for `datasets:`."""

    def entry(rows: list[dict], name: str = "data.jsonl", **keys) -> dict:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"path": str(path), "ds_type": "json", "type": "alpaca"} | keys

    return entry


@pytest.fixture
def configure(base, tmp_path):
    """The host's validated configuration for some datasets."""

    def cfg(*entries: dict, **changes) -> DictDefault:
        values = {
            "base_model": str(base),
            "adapter": "lora",
            "lora_r": 4,
            "lora_alpha": 8,
            "lora_target_linear": True,
            "datasets": list(entries),
            "dataset_prepared_path": str(tmp_path / "prepared"),
            "output_dir": str(tmp_path / "out"),
            "sequence_len": 512,
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "num_epochs": 1,
            "learning_rate": 0.001,
            "optimizer": "adamw_torch",
            "bf16": False,
            "seed": 42,
        }
        config = validate_config(DictDefault(values | changes))
        normalize_config(config)
        normalize_cfg_datasets(config)
        config.dataset_num_proc = None
        return config

    return cfg


Key = tuple[tuple[int, ...], tuple[int, ...]]


def prepared(cfg) -> tuple[Counter[Key], Counter[Key]]:
    """The rows of the host's own training and validation datasets."""
    with pytest.MonkeyPatch.context() as patch:
        # Counting the steps of a packed run takes seconds.
        patch.setenv("AXOLOTL_IS_PREPROCESS", "1")
        train, validation, *_ = prepare_datasets(copy.deepcopy(cfg), load_tokenizer(cfg))
    return rows_of(train), rows_of(validation or [])


def rows_of(dataset) -> Counter[Key]:
    return Counter((tuple(row["input_ids"]), tuple(row["labels"])) for row in dataset)


def key(sample) -> Key:
    assert set(sample.inputs) == {"input_ids", "labels"}
    for tensor in sample.inputs.values():
        assert tensor.dtype == torch.int64 and tensor.shape[0] == 1 and tensor.dim() == 2
    return tuple(tuple(sample.inputs[name][0].tolist()) for name in ("input_ids", "labels"))


def text(cfg, sample) -> str:
    return load_tokenizer(cfg).decode(sample.inputs["input_ids"][0], skip_special_tokens=True)


def numbers(cfg, samples) -> list[int]:
    """Which raw rows the samples are."""
    return [int(text(cfg, sample).split("row ")[1].split(".")[0]) for sample in samples]


KINDS = {
    "alpaca": (alpaca, {}, {}),
    "trained on inputs": (alpaca, {}, {"train_on_inputs": True}),
    "custom": (
        alpaca,
        {
            "type": {
                "field_instruction": "instruction",
                "field_output": "output",
                "format": "{instruction}!",
            }
        },
        {},
    ),
    "chat": (
        chat,
        {"type": "chat_template", "roles_to_train": ["assistant"], "train_on_eos": "turn"},
        {"chat_template": "chatml"},
    ),
    "packed": (alpaca, {}, {"sample_packing": True, "pad_to_sequence_len": True}),
    "cut": (alpaca, {}, {"excess_length_strategy": "truncate", "sequence_len": 190}),
    "dropped": (alpaca, {}, {"sequence_len": 190}),
    "weighted": (alpaca, {"weight": 0.5}, {}),
    "sharded": (alpaca, {"shards": 3, "shards_idx": 1}, {}),
    "in parts": (alpaca, {"preprocess_shards": 3}, {}),
    "sliced": (alpaca, {"split": "train[:50%]"}, {}),
    "one shard of all": (alpaca, {}, {"dataset_shard_num": 2, "dataset_shard_idx": 1}),
    "in order": (alpaca, {}, {"shuffle_merged_datasets": False}),
    "by length": (alpaca, {}, {"group_by_length": True}),
}


@pytest.mark.usefixtures("combinations")
@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_training_rows_of_the_prepared_datasets(kind, write, configure):
    make, keys, changes = KINDS[kind]
    raw = with_tasks(make, 60)
    cfg = configure(write(raw, **keys), val_set_size=0.2, **changes)
    train, validation = prepared(cfg)
    samples = draw_samples(cfg, 9)
    assert Counter(sample.task for sample in samples) == {"sums": 3, "words": 3, "dates": 3}
    assert all(key(sample) in train and key(sample) not in validation for sample in samples)
    drawn = numbers(cfg, samples)
    assert len(set(drawn)) == 9
    assert [raw[number]["task"] for number in drawn] == [sample.task for sample in samples]


def test_asking_for_all_gives_every_training_row_and_no_validation_row(write, configure, caplog):
    raw = with_tasks(alpaca, 40)
    cfg = configure(write(raw), val_set_size=0.3)
    train, _ = prepared(cfg)
    samples = draw_samples(cfg, 100)
    assert Counter(map(key, samples)) == train
    assert "28 usable rows, not 100" in caplog.text


def test_a_row_that_equals_a_validation_row_is_not_drawn(write, configure):
    cfg = configure(write([alpaca(i % 20) for i in range(60)]), val_set_size=0.3)
    train, validation = prepared(cfg)
    both = train.keys() & validation.keys()
    assert both and train.keys() - both
    assert {key(sample) for sample in draw_samples(cfg, 60)} == train.keys() - both


def test_what_the_host_has_not_prepared_yet_it_prepares_and_keeps(write, configure, monkeypatch):
    cfg = configure(write(with_tasks(alpaca, 40)), val_set_size=0.3)
    samples = draw_samples(cfg, 6)
    monkeypatch.setattr(
        InstructionPromptTokenizingStrategy, "tokenize_prompt", lambda *_: pytest.fail("again")
    )
    train, _ = prepared(cfg)
    assert all(key(sample) in train for sample in samples)


def test_only_drawn_rows_are_tokenised_and_in_this_process(write, configure, monkeypatch):
    cfg = configure(write(with_tasks(alpaca, 600)), val_set_size=0.1)
    prepared(cfg)
    tokenized = []
    original = InstructionPromptTokenizingStrategy.tokenize_prompt

    def counting(self, prompt):
        tokenized.append(prompt["instruction"])
        return original(self, prompt)

    monkeypatch.setattr(InstructionPromptTokenizingStrategy, "tokenize_prompt", counting)
    monkeypatch.setattr(
        "axolotl.datasets.tokenize_with_work_queue", lambda *_, **__: pytest.fail("workers")
    )
    cfg.dataset_num_proc = 4
    assert len(draw_samples(cfg, 12)) == 12
    assert 12 <= len(tokenized) <= 60


def test_a_configuration_is_not_changed(write, configure):
    cfg = configure(write(with_tasks(chat, 30), type="chat_template"), chat_template="chatml")
    before = copy.deepcopy(cfg)
    draw_samples(cfg, 6)
    assert cfg == before


def test_pieces_of_long_texts_are_samples(write, configure):
    raw = [{"text": f"row {i}. " + f"{i} and on " * 60} for i in range(20)]
    cfg = configure(write(raw, type="completion"), val_set_size=0.2, sequence_len=64)
    train, validation = prepared(cfg)
    samples = draw_samples(cfg, 12)
    assert len({key(sample) for sample in samples}) == 12
    assert all(key(sample) in train and key(sample) not in validation for sample in samples)


def test_rows_that_are_tokenised_already_are_taken_as_they_are(configure, tmp_path):
    rows = []
    for i in range(30):
        ids = [5 + i, 6, 7, 8, 9 + i]
        labels = [-100, -100, *ids[2:]] if i % 3 else [ids[0], *[-100] * 4]
        task = ["a", "b"][i % 2]
        rows.append({"input_ids": ids, "attention_mask": [1] * 5, "labels": labels, "task": task})
    Dataset.from_list(rows).to_parquet(tmp_path / "tokens.parquet")
    entry = {"path": str(tmp_path / "tokens.parquet"), "ds_type": "parquet", "type": None}
    samples = draw_samples(configure(entry), 30)
    # In every third row the only label is the first token's, which nothing predicts.
    assert {key(sample) for sample in samples} == {
        (tuple(row["input_ids"]), tuple(row["labels"])) for i, row in enumerate(rows) if i % 3
    }
    assert all(
        sample.inputs["input_ids"][0, 0] % 2 == "ba".index(sample.task) for sample in samples
    )


def test_duplicates_are_drawn_once(write, configure):
    cfg = configure(write([alpaca(i % 4) for i in range(40)]), dataset_exact_deduplication=True)
    samples = draw_samples(cfg, 12)
    assert sorted(numbers(cfg, samples)) == [0, 1, 2, 3]


def test_tasks_of_the_same_name_are_one_and_other_datasets_are_named_after_their_file(
    write, configure
):
    first = write([alpaca(i, task="sums") for i in range(10)], "first.jsonl")
    second = write([alpaca(i, task=7 if i % 2 else "sums") for i in range(10, 20)], "second.jsonl")
    third = write([chat(i) for i in range(20, 30)], "third.jsonl", type="chat_template")
    cfg = configure(first, second, third, chat_template="chatml")
    samples = draw_samples(cfg, 30)
    by_task = {task: set() for task in dict.fromkeys(sample.task for sample in samples)}
    for sample, number in zip(samples, numbers(cfg, samples), strict=True):
        by_task[sample.task].add(number)
    evens = {*range(10, 20, 2)}
    assert by_task == {
        "sums": {*range(10)} | evens,
        "7": {*range(10, 20)} - evens,
        "third.jsonl": {*range(20, 30)},
    }
    assert list(by_task) == ["sums", "7", "third.jsonl"]


def test_class_labels_are_tasks_by_name_and_a_split_is_picked(configure, tmp_path):
    labels = ClassLabel(names=["even", "odd"])
    splits = {
        name: Dataset.from_list([alpaca(i, task=i % 2) for i in rows]).cast_column("task", labels)
        for name, rows in {"train": range(10), "extra": range(10, 20)}.items()
    }
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    for split, rows in ({}, range(10)), ({"split": "extra"}, range(10, 20)):
        cfg = configure({"path": str(tmp_path / "saved"), "type": "alpaca"} | split)
        samples = draw_samples(cfg, 20)
        drawn = dict(zip(numbers(cfg, samples), samples, strict=True))
        assert sorted(drawn) == list(rows)
        assert all(drawn[i].task == labels.names[i % 2] for i in rows)


def test_what_one_task_cannot_give_the_others_do(write, configure, caplog):
    rare = [alpaca(i, task="rare") for i in range(3)]
    common = [alpaca(i, task=f"common {i % 2}") for i in range(3, 60)]
    samples = draw_samples(configure(write(rare + common)), 18)
    assert Counter(sample.task for sample in samples) == {"rare": 3, "common 1": 8, "common 0": 7}
    assert "the task rare has 3 usable rows, 3 fewer than its share" in caplog.text


def test_rows_that_can_be_used_are_found_among_many_that_cannot(write, configure):
    good = [alpaca(i, task="mixed") for i in range(5)]
    long = [alpaca(i, task="mixed") | {"output": f"row {i}. " * 60} for i in range(5, 200)]
    cfg = configure(write(long + good))
    assert sorted(numbers(cfg, draw_samples(cfg, 5))) == [0, 1, 2, 3, 4]


def test_a_seed_decides_the_samples_and_no_global_state_does(write, configure):
    cfg = configure(write(with_tasks(alpaca, 60)), val_set_size=0.2)

    def states():
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()

    first = draw_samples(cfg, 9, seed=3)
    for module in (random, np.random):
        module.seed(5)
    torch.manual_seed(5)
    before = states()
    again = draw_samples(cfg, 9, seed=3)
    assert states() == before
    assert list(map(key, again)) == list(map(key, first))
    assert list(map(key, draw_samples(cfg, 9, seed=4))) != list(map(key, first))


def test_a_changed_tokenizer_is_read_without_waiting_for_other_ranks(write, configure, monkeypatch):
    cfg = configure(
        write(with_tasks(alpaca, 30)), added_tokens_overrides={3: "<filler>"}, val_set_size=0.2
    )
    train, _ = prepared(cfg)
    monkeypatch.setattr("axolotl.utils.distributed.is_distributed", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda *_: 1)
    monkeypatch.setattr("axolotl.loaders.tokenizer.barrier", lambda: pytest.fail("barrier"))
    assert all(key(sample) in train for sample in draw_samples(cfg, 6))


def test_refusals_of_data_that_gives_no_sample_of_every_task(write, configure):
    three = configure(write(with_tasks(alpaca, 9)))
    with pytest.raises(ValueError, match="2 samples are too few for the 3 tasks.*rename it"):
        draw_samples(three, 2)
    long = [alpaca(i, task="long") | {"output": "long " * 200} for i in range(4)]
    part = configure(write([*long, *with_tasks(alpaca, 9)], "long.jsonl"))
    with pytest.raises(ValueError, match="None of the 4 rows of the task long can be used"):
        draw_samples(part, 8)
    gaps = [alpaca(i, task=["sums", None, " "][i % 3]) for i in range(9)]
    with pytest.raises(ValueError, match="6 of 9 rows of the dataset gaps.jsonl have no value"):
        draw_samples(configure(write(gaps, "gaps.jsonl")), 2)
    lists = [alpaca(i, task=["sums", "words"]) for i in range(9)]
    with pytest.raises(ValueError, match="dataset lists.jsonl holds list values"):
        draw_samples(configure(write(lists, "lists.jsonl")), 2)


def test_data_that_another_plugin_loads_is_refused(write, configure, monkeypatch):
    class Loader(BasePlugin):
        def load_datasets(self, cfg, preprocess=False):
            return None

    monkeypatch.setitem(PluginManager.get_instance().plugins, "some.Loader", Loader())
    with pytest.raises(ValueError, match="`plugins`: some.Loader loads the data in its own way"):
        draw_samples(configure(write(with_tasks(alpaca, 9))), 3)
