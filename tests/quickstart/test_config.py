"""The YAML: commented, valid for the host, never overwritten once edited."""

import pytest
import torch
import yaml
from axolotl.integrations.base import PluginManager
from axolotl.utils.config import normalize_config, prepare_plugins, validate_config
from axolotl.utils.dict import DictDefault

from axolotl_alphalora.quickstart.config import (
    CONFIG_FILE,
    config_text,
    is_edited,
    read_config,
    write_config,
)
from axolotl_alphalora.quickstart.process import QuickstartError


@pytest.fixture
def clean_plugin_manager(monkeypatch):
    monkeypatch.setattr(PluginManager, "_instance", None)


def test_the_host_accepts_it(tmp_path, tiny_model, clean_plugin_manager):
    write_config(tmp_path, tiny_model, 40)
    values = yaml.safe_load((tmp_path / CONFIG_FILE).read_text())
    cfg = DictDefault(values)
    prepare_plugins(cfg)
    cfg = validate_config(cfg)
    normalize_config(cfg)
    assert cfg.alphalora.experts_per_block == 5
    assert cfg.max_steps == 40
    assert cfg.torch_dtype is torch.float32
    assert set(values) <= set(cfg), "the host dropped an option"


def test_every_option_is_explained(tmp_path):
    options = [
        line
        for line in config_text(tmp_path, "model", 40).splitlines()
        if ": " in line and not line.lstrip().startswith(("#", "ds_type", "type"))
    ]
    plain = [line for line in options if "#" not in line]
    assert {line.split(":")[0].strip() for line in plain} <= EXPLAINED_ELSEWHERE


EXPLAINED_ELSEWHERE = {
    "adapter",
    "fp16",
    "gradient_accumulation_steps",
    "num_epochs",
    "optimizer",
    "learning_rate",
    "weight_decay",
    "seed",
    "logging_steps",
    "- path",
}


def test_odd_paths_survive(tmp_path):
    folder = tmp_path / "a: b # 'c' \"d\" {e} [f] ü"
    folder.mkdir()
    config = write_config(folder, folder / "model", 3)
    assert config.base_model == str(folder / "model")
    assert config.output_dir == folder / "adapter"


def test_what_an_edit_says_of_data_and_base_is_read(tmp_path):
    config = write_config(tmp_path, "model", 3)
    assert config.bits == 0 and config.data == (), "the rows are written later"
    (tmp_path / "mine.jsonl").write_text("{}\n")
    (tmp_path / "more").mkdir()
    text = config.path.read_text().replace("# load_in_4bit", "load_in_4bit")
    text = text.replace(str(tmp_path / "train.jsonl"), str(tmp_path / "mine.jsonl"))
    more = (
        f"test_datasets: [{{path: json, data_files: [{tmp_path / 'more'}, gone]}}, {{path: hub/x}}]"
    )
    config.path.write_text(text + more)
    found = read_config(config.path)
    assert found.bits == 4 and found.data == (tmp_path / "mine.jsonl", tmp_path / "more")
    (tmp_path / "more" / "a.jsonl").write_text("{}\n")
    config.path.write_text(text + more.replace("/more,", "/more/*.jsonl,"))
    assert read_config(config.path).data[1:] == (tmp_path / "more" / "a.jsonl",)
    config.path.write_text(text.replace("load_in_4bit", "load_in_8bit"))
    assert read_config(config.path).bits == 8


def test_ours_is_rewritten_for_other_steps(tmp_path):
    assert write_config(tmp_path, "model", 40).max_steps == 40
    config = write_config(tmp_path, "other", 7)
    assert (config.max_steps, config.base_model, config.edited) == (7, "other", False)


def test_an_edited_file_is_kept(tmp_path):
    write_config(tmp_path, "model", 40)
    path = tmp_path / CONFIG_FILE
    edited = path.read_text().replace("lora_r: 8", "lora_r: 4")
    path.write_text(edited)
    config = write_config(tmp_path, "other", 7)
    assert path.read_text() == edited
    assert (config.max_steps, config.base_model, config.edited) == (40, "model", True)
    assert is_edited(path)


def test_text_after_the_seal_is_an_edit(tmp_path):
    write_config(tmp_path, "model", 40)
    path = tmp_path / CONFIG_FILE
    path.write_text(path.read_text() + "wandb_project: mine\n")
    assert is_edited(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("- a", "is no Axolotl configuration"),
        ("output_dir: x", "no `base_model`"),
        ("base_model: x\noutput_dir: y\nmax_steps: many", "`max_steps: many` is not a number"),
    ],
)
def test_a_broken_edit_is_explained(tmp_path, text, message):
    path = tmp_path / CONFIG_FILE
    path.write_text(text)
    with pytest.raises(QuickstartError, match=message) as error:
        read_config(path)
    assert "delete it to have it written anew" in error.value.message
