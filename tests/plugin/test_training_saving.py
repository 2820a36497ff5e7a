"""An adapter's files are put in place only when all of them are written."""

import json

import pytest
from peft import PeftModel

from axolotl_alphalora import AlphaLoraConfig
from axolotl_alphalora.plugin.training import keep_settings, save_whole
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
