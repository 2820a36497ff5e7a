"""Training tokens of prepared data: the host's folder, and what a plain loop counts in it."""

import json

import pytest
import yaml
from axolotl.utils.config import validate_config
from axolotl.utils.data.shared import (
    generate_dataset_hash_from_config,
    get_prepared_dataset_path,
)
from axolotl.utils.dict import DictDefault
from click.testing import CliRunner
from datasets import concatenate_datasets

from axolotl_alphalora.allocation import Plan
from axolotl_alphalora.cli import alphalora
from axolotl_alphalora.plugin import prepared
from axolotl_alphalora.plugin.data import load_splits, load_tokenizer
from axolotl_alphalora.plugin.prepared import prepared_folder, prepared_tokens
from helpers.models import save_tiny_model
from helpers.settings import base_yaml, validate

pytestmark = pytest.mark.usefixtures("plugin")

PACKED = {"sample_packing": True, "attn_implementation": "flash_attention_2"}
CHAT = {"path": "./chat.jsonl", "ds_type": "json", "type": "chat_template"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sequence_len": None},
        {"dataset_prepared_path": "./p", "val_set_size": 0.1, "train_on_inputs": True},
        PACKED,
        PACKED | {"eval_sample_packing": False, "sample_packing_bin_size": 50},
        {"datasets": [CHAT]},
        {"datasets": [CHAT], "chat_template": "chatml"},
        {"datasets": [CHAT | {"chat_template": "chatml", "roles_to_train": ["assistant"]}]},
        {"datasets": [{"path": "a/b", "type": "completion", "split": "train[:9]"}, CHAT]},
        {"special_tokens": {"pad_token": "<pad>"}, "dataset_exact_deduplication": True},
        {"added_tokens_overrides": {5: "<new>"}},
        {"tokenizer_config": "./other"},
    ],
    ids=str,
)
def test_the_folder_is_the_host_s(changes):
    written = {key: value for key, value in base_yaml(**changes).items() if value is not None}
    cfg = validate_config(DictDefault(written))
    cfg.tokenizer_config = cfg.tokenizer_config or cfg.base_model  # as it does before it loads
    theirs = generate_dataset_hash_from_config(cfg, cfg.datasets, cfg.tokenizer_config)
    assert prepared_folder(written) == get_prepared_dataset_path(cfg, theirs)


@pytest.fixture
def config(tmp_path):
    save_tiny_model(tmp_path / "tiny")
    rows = [{"instruction": "say", "output": "w1 " * (1 + i % 5)} for i in range(40)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = base_yaml(
        base_model=str(tmp_path / "tiny"),
        datasets=[{"path": str(tmp_path / "data.jsonl"), "ds_type": "json", "type": "alpaca"}],
        dataset_prepared_path=str(tmp_path / "prepared"),
        output_dir=str(tmp_path / "out"),
        sequence_len=256,
        val_set_size=0.25,
    )
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(settings))
    return path, settings


def shown(path):
    result = CliRunner().invoke(alphalora, ["plan", str(path)])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.mark.works("Plans", "trainable parameters for each training token of prepared data")
def test_the_tokens_are_those_that_the_host_has_prepared(config, monkeypatch, tmp_path):
    path, settings = config
    assert prepared_tokens(settings) is None and "Data:" not in shown(path)
    cfg = validate(**settings, tokenizer_config=settings["base_model"])
    train, validation = load_splits(cfg, load_tokenizer(cfg))
    whole = concatenate_datasets([train, validation])
    labels = sum(label != -100 for row in whole for label in row["labels"])
    found = prepared_tokens(settings)
    assert (found.rows, found.tokens) == (len(train), round(labels * 30 / 40)) and labels > 40
    everything = prepared_tokens(settings | {"val_set_size": 0})
    assert (everything.rows, everything.tokens) == (len(whole), labels)

    plan = tmp_path / "plan.json"
    CliRunner().invoke(alphalora, ["plan", str(path), "--output", str(plan)])
    ratio = Plan.load(plan).trainable_parameters / found.tokens
    said = shown(path)
    assert f"Data: {ratio:,.0f} trainable parameters for each training token." in said
    assert f"There are {found.tokens:,} tokens with a label in 30 training rows (one epoch" in said
    printed = CliRunner().invoke(alphalora, ["plan", str(path), "--json"])
    assert Plan.from_dict(json.loads(printed.stdout)) and "Data: " in printed.stderr

    monkeypatch.setattr(prepared, "LARGEST", 10)
    assert prepared_tokens(settings) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"datasets": None},
        {"pretraining_dataset": "some/text"},
        {"dataset_prepared_path": "no/such/folder"},
        {"datasets": "no list"},
        {"datasets": [3]},
    ],
    ids=str,
)
def test_where_nothing_is_prepared_nothing_is_said(changes):
    assert prepared_tokens(base_yaml(**changes)) is None


def test_without_the_host_nothing_is_said(monkeypatch):
    monkeypatch.setattr(prepared, "find_spec", lambda name: None)
    assert prepared_tokens(base_yaml()) is None
