"""An adapter's files are put in place only when all of them are written."""

import json
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import Trainer, TrainingArguments

from axolotl_alphalora import AlphaLoraConfig
from axolotl_alphalora.plugin.saved import read_saved
from axolotl_alphalora.plugin.training import (
    keep_settings,
    save_settings,
    save_whole,
)
from helpers.balancing import adapted

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def files(folder) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_the_files_are_those_of_peft(tiny_llama, tmp_path):
    model = adapted(tiny_llama)
    model.add_adapter("ref", model.peft_config["default"])
    model.save_pretrained(tmp_path / "plain")
    save_whole(model)
    model.save_pretrained(tmp_path / "whole")
    assert files(tmp_path / "whole") == files(tmp_path / "plain") >= {CONFIG, f"ref/{WEIGHTS}"}
    for name in files(tmp_path / "plain"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    PeftModel.from_pretrained(tiny_llama, tmp_path / "whole")


def test_a_model_card_that_is_there_is_kept(tiny_llama, tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    model = adapted(tiny_llama)
    save_whole(model)
    model.save_pretrained(tmp_path)
    assert "# Mine" in (tmp_path / "README.md").read_text()


def test_a_failure_leaves_the_old_adapter_as_it_was(tiny_llama, tmp_path, monkeypatch):
    model = adapted(tiny_llama)
    save_whole(model)
    model.save_pretrained(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(model.peft_config["default"]), "save_pretrained", full)
    for parameter in model.parameters():
        parameter.data += 1
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_other_processes_write_nothing(tiny_llama, tmp_path):
    model = adapted(tiny_llama)
    save_whole(model)
    model.save_pretrained(tmp_path / "rank1", is_main_process=False)
    assert not files(tmp_path)


def test_only_the_first_writing_leaves_the_settings_that_are_there(tmp_path):
    """That of the host before it trains; Axolotl's FSDP2 writes the last ones by the config too."""
    old, new = AlphaLoraConfig(r=2), AlphaLoraConfig(r=4)
    old.save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").touch()

    def rank():
        return json.loads((tmp_path / "adapter_config.json").read_text())["r"]

    keep_settings(new, tmp_path)
    new.save_pretrained(tmp_path)
    assert rank() == 2
    new.save_pretrained(tmp_path)
    assert rank() == 4
    keep_settings(old, tmp_path / "empty")
    old.save_pretrained(tmp_path / "empty")
    assert (tmp_path / "empty" / "adapter_config.json").is_file()


class Sharded(Trainer):
    """Leaves the weights of a checkpoint to an engine, as under FSDP with sharded states."""

    def save_model(self, output_dir=None, _internal_call=False):
        (Path(output_dir) / "pytorch_model_fsdp_0").mkdir(parents=True)


def test_a_sharded_checkpoint_has_the_settings(tiny_llama, tmp_path, monkeypatch):
    model = adapted(tiny_llama)
    settings = {"report_to": "none", "use_cpu": True}
    trainer = Sharded(model, TrainingArguments(str(tmp_path), **settings))
    save_settings(trainer)
    trainer.save_model(str(tmp_path / "checkpoint-1"), _internal_call=True)
    assert files(tmp_path / "checkpoint-1") == {CONFIG}
    saved = AlphaLoraConfig.from_pretrained(tmp_path / "checkpoint-1")
    assert saved.num_experts == model.peft_config["default"].num_experts
    trainer.save_model(str(tmp_path / "final"))
    assert not files(tmp_path / "final"), "the host's own"
    earlier = tmp_path / "checkpoint-0"
    earlier.mkdir()
    (earlier / "trainer_state.json").write_text("{}")
    with pytest.raises(ValueError, match=f"Copy the {CONFIG} of the run that saved it"):
        read_saved("resume_from_checkpoint", str(earlier))
    monkeypatch.setattr(TrainingArguments, "should_save", False)
    trainer.save_model(str(tmp_path / "checkpoint-2"), _internal_call=True)
    assert not files(tmp_path / "checkpoint-2"), "another process writes them"
