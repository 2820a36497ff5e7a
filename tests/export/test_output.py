"""Where an export goes: into a new or an empty directory, whole or not at all."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaForCausalLM

from axolotl_alphalora.export.lora import check_targets
from helpers.exporting import exported
from helpers.models import tiny_llama


def test_a_full_directory_is_refused(saved, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        exported(saved, tmp_path)


@pytest.mark.parametrize("place", ["new", "empty", "linked", "."])
def test_an_export_goes_where_it_was_asked_to(saved, tmp_path, monkeypatch, place):
    """A directory that is there may be a mount point or the working directory: it stays."""
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "linked").symlink_to(empty)
    monkeypatch.chdir(empty if place == "." else tmp_path)
    kept = empty.stat().st_ino
    exported(saved, Path(place))
    folder = Path(place).absolute()
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(
        path.name for path in folder.iterdir()
    )
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert empty.stat().st_ino == kept
    PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(saved / "base"), folder)


def test_a_failure_while_writing_leaves_nothing(saved, tmp_path, monkeypatch):
    with pytest.raises(ZeroDivisionError):
        exported(saved, tmp_path / "lora", card=lambda made: 1 / 0)
    assert list(tmp_path.iterdir()) == []
    rename = Path.rename

    def failing(self, target):
        if self.name == "adapter_config.json":
            raise OSError("full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="full"):
        exported(saved, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_not_in_the_way(saved, tmp_path):
    (tmp_path / ".exporting-1234abcd").mkdir()
    exported(saved, tmp_path)
    assert (tmp_path / "adapter_config.json").is_file()


@pytest.mark.refused("Seeing and exporting", "export of an MLP that PEFT takes for routed experts")
def test_modules_that_peft_takes_for_routed_experts_are_refused_by_name():
    with torch.device("meta"):
        base = DeepseekV3ForCausalLM(DeepseekV3Config(num_hidden_layers=2, first_k_dense_replace=1))
    attention = "model.layers.0.self_attn.o_proj"
    check_targets([attention], base)
    dense = [f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")]
    with pytest.raises(ValueError, match="deepseek_v3: it would take model.layers.0.mlp"):
        check_targets([*dense, attention], base)
    with pytest.raises(ValueError, match="deepseek_v3: Cannot convert PEFT target.* gate_proj"):
        check_targets([dense[0], attention], base)
    check_targets(dense, tiny_llama())
