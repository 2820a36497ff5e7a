"""Training tokens of prepared data: the host's folder, and what a plain loop counts in it."""

import json

import pytest
import yaml
from click.testing import CliRunner
from datasets import concatenate_datasets

from axolotl_alphalora.allocation import Plan
from axolotl_alphalora.cli import alphalora
from axolotl_alphalora.plugin import prepared
from axolotl_alphalora.plugin.data import load_splits, load_tokenizer
from axolotl_alphalora.plugin.prepared import prepared_tokens
from helpers.models import save_tiny_model
from helpers.settings import base_yaml, validate

pytestmark = pytest.mark.usefixtures("plugin")


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
    assert f"Data: {ratio:,.0f} trainable parameters for each training token, if " in said
    assert f"prepared: {found.tokens:,} tokens with a label in 30 training rows (one epoch" in said
    # Another YAML of the same folder may have prepared them, so the folder is named.
    assert f"if {found.folder} holds" in said
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


def test_of_several_prepared_data_sets_none_is_guessed(config):
    _, settings = config
    cfg = validate(**settings, tokenizer_config=settings["base_model"])
    for changes in ({}, {"sequence_len": 128}):
        assert not changes or prepared_tokens(settings)
        cfg.update(changes)
        load_splits(cfg, load_tokenizer(cfg))
    assert prepared_tokens(settings) is None
