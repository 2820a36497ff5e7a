"""`alphalora export` refuses what cannot work before it loads anything."""

import json

import pytest
import torch

from axolotl_alphalora.cli.export import _GGUF_TYPES, _METHODS, _split
from axolotl_alphalora.cli.trained import Data, Trained
from axolotl_alphalora.export import DEFAULT_METHOD, GGUF_TYPES, METHODS
from axolotl_alphalora.samples import Sample
from helpers.inspecting import write_adapter


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "adapter"
    write_adapter(folder, [1, 2])
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "gone")}
    path.write_text(json.dumps(config))
    return folder


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n')
    return path


def test_a_directory_without_an_adapter(run, tmp_path, rows):
    found = run("export", tmp_path, "--output", tmp_path / "lora", "--data", rows)
    assert found.exit_code == 1
    assert "no adapter_config.json" in found.output


def test_a_plain_lora(run, adapter, rows, tmp_path):
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    found = run("export", adapter, "--output", tmp_path / "lora", "--data", rows)
    assert found.exit_code == 1 and "it is a plain LoRA" in found.output


def test_an_adapter_without_weights(run, adapter, rows, tmp_path):
    (adapter / "adapter_model.safetensors").unlink()
    found = run("export", adapter, "--output", tmp_path / "lora", "--data", rows)
    assert found.exit_code == 1 and "has no adapter_model.safetensors" in found.output


def test_an_output_that_is_not_empty(run, adapter, rows):
    found = run("export", adapter, "--output", adapter, "--data", rows)
    assert found.exit_code == 1 and "is not empty" in found.output


def test_a_base_that_has_moved(run, adapter, rows, tmp_path):
    found = run("export", adapter, "--output", tmp_path / "lora", "--data", rows)
    assert found.exit_code == 1 and "gone" in found.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--load-in-4bit", "--load-in-8bit"], "not both"),
        (["--max-kl", "-1"], "--max-kl"),
        (["--rank", "0"], "is no whole number of at least 1, and not auto"),
        (["--rank", "x"], "is no whole number of at least 1, and not auto"),
        (["--gguf-type", "f16"], "--gguf-type is of the file for llama.cpp"),
        (["--method", "magic"], "least-squares"),
    ],
)
def test_options_that_make_no_sense(run, adapter, rows, tmp_path, options, message):
    found = run("export", adapter, "--output", tmp_path / "lora", "--data", rows, *options)
    assert found.exit_code == 2 and message in found.output


def test_a_yaml_decides_the_base(run, adapter, tmp_path):
    config = tmp_path / "config.yml"
    config.write_text("base_model: x\n")
    for options in (["--base-model", "y"], ["--sequence-len", 9]):
        place = ["--output", tmp_path / "lora", "--data", config]
        found = run("export", adapter, *place, *options)
        assert found.exit_code == 2 and "the YAML says which base" in found.output


def test_what_was_fitted_on_is_not_measured_on(tmp_path):
    """A row of `--eval-data` that is among those of `--data` is left out of the price."""
    own, other = (Sample("a", {"input_ids": torch.tensor([[1, 2, n]])}) for n in (3, 4))
    again = Sample("b", {"input_ids": torch.tensor([[1, 2, 3]])})
    data, file = Data(tmp_path / "rows.jsonl", 4, 0), tmp_path / "eval.jsonl"
    assert _split(Trained(None, [own], [again, other], "base"), data, file)[:2] == ([own], [other])
    with pytest.raises(ValueError, match="eval.jsonl has no row that .*rows.jsonl has not"):
        _split(Trained(None, [own], [again], "base"), data, file)
    both = _split(Trained(None, [own, again, own, other], [], "base"), data, None)
    assert both[:2] == ([own, own], [other])
    with pytest.raises(ValueError, match="the same row for several tasks"):
        _split(Trained(None, [own, again], [], "base"), data, None)


def test_the_methods_are_those_of_the_export():
    """They are written out in the command, which need not import torch to print its help."""
    assert sorted(_METHODS) == sorted(METHODS) and _METHODS[0] == DEFAULT_METHOD


def test_auto_is_a_rank_that_needs_a_limit(run, adapter, rows, tmp_path):
    where = ["--output", tmp_path / "lora", "--data", rows]
    found = run("export", adapter, *where, "--rank", "auto")
    assert found.exit_code == 2 and "within --max-kl: add it" in found.output
    found = run("export", adapter, *where, "--rank", "auto", "--max-kl", "0.1")
    assert found.exit_code == 1 and "gone" in found.output


def test_the_types_of_numbers_are_those_of_the_export():
    assert _GGUF_TYPES == GGUF_TYPES
