"""Where an export goes: into a new or an empty directory, whole or not at all."""

import os
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaForCausalLM

from axolotl_alphalora.evaluation import load_adapted
from axolotl_alphalora.export import check_output, export_adapter
from axolotl_alphalora.export.lora import check_targets
from helpers.balancing import adapted
from helpers.exporting import exported
from helpers.exporting import rows as calibration
from helpers.models import tiny_llama


def test_a_full_directory_is_refused(saved, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        exported(saved, tmp_path)


@pytest.mark.parametrize("place", ["lora", "/dev/null"])
def test_a_place_for_llama_cpp_that_is_no_file_is_refused_before_any_work(tmp_path, place):
    with pytest.raises(ValueError, match=f"--gguf .*{place} is no file: name one"):
        check_output(tmp_path / "lora", tmp_path / place)


@pytest.mark.parametrize("place", ["new/lora.gguf", "out/lora.gguf", "out/new/lora.gguf"])
def test_directories_on_the_way_to_a_file_for_llama_cpp_are_made(saved, tmp_path, place):
    output, gguf = tmp_path / "out" / "lora", tmp_path / place
    check_output(output, gguf)
    assert not output.exists() and not gguf.parent.exists() or gguf.parent == output.parent
    exported(saved, output, gguf=gguf)
    assert gguf.stat().st_size and (output / "adapter_config.json").is_file()
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".exporting-")]


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


def test_a_vocabulary_that_training_resized_is_not_in_the_export(saved, tmp_path):
    """As `special_tokens` with a new `pad_token` does it: no base takes the larger embeddings."""
    base = LlamaForCausalLM.from_pretrained(saved / "base")
    rows = base.get_input_embeddings().weight.shape[0]
    model = adapted(LlamaForCausalLM.from_pretrained(saved / "base"))
    model.resize_token_embeddings(rows + 2)
    model.peft_config["default"].base_model_name_or_path = str(saved / "base")
    model.save_pretrained(tmp_path / "adapter")
    held = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any("embed_tokens" in key for key in held), "PEFT saves them"
    wider = load_adapted(base, tmp_path / "adapter")
    options = {"calibration": calibration(4, 1), "held_out": calibration(4, 2)}
    found = export_adapter(wider, tmp_path / "adapter", tmp_path / "lora", **options)
    kept = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert not [key for key in kept if "lora_" not in key]
    assert found.added == 2 and "added 2 tokens" in " ".join(found.servers())
    plain = LlamaForCausalLM.from_pretrained(saved / "base")
    PeftModel.from_pretrained(plain, tmp_path / "lora")
    _, own = exported(saved, tmp_path / "own")
    assert own.added == 0 and "added" not in " ".join(own.servers())


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


def test_a_gguf_file_is_written_through_a_link_and_no_pipe_is_replaced(saved, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link, pipe = tmp_path / "link.gguf", tmp_path / "pipe.gguf"
    link.symlink_to("elsewhere/lora.gguf")
    exported(saved, tmp_path / "lora", gguf=link)
    assert link.is_symlink() and (tmp_path / "elsewhere" / "lora.gguf").is_file()
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match="--gguf .*pipe.gguf"):
        exported(saved, tmp_path / "other", gguf=pipe)
    assert pipe.is_fifo()
