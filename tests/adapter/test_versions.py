"""Adapters of other releases: older ones open, newer ones say what they need."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import axolotl_alphalora
from axolotl_alphalora.adapter import AlphaLoraConfig

STORED = sorted(Path(__file__).with_name("releases").iterdir())


@pytest.mark.works("Robustness", "adapters of older releases open", "stored ones, from 0.1.0 on")
@pytest.mark.parametrize("folder", STORED, ids=lambda folder: folder.name)
def test_an_adapter_of_an_older_release_gives_what_it_gave_then(folder):
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    model = PeftModel.from_pretrained(base, folder / "adapter").eval()
    stored = load_file(folder / "logits.safetensors")
    with torch.no_grad():
        logits = model(stored["input_ids"]).logits
        torch.testing.assert_close(logits, stored["logits"], rtol=1e-4, atol=1e-5)
        with model.disable_adapter():
            assert (model(stored["input_ids"]).logits - logits).abs().max() > 1e-2


@pytest.mark.refused("Robustness", "an adapter of a newer release", "names the release it needs")
def test_an_adapter_of_a_newer_release_says_which_one_it_needs(tmp_path):
    shutil.copytree(STORED[-1] / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"needs_version": "9.2", "new": 1}))
    base = AutoModelForCausalLM.from_pretrained(STORED[-1] / "base")
    with pytest.raises(ValueError, match="needs axolotl-alphalora 9.2 or newer.*Install a"):
        PeftModel.from_pretrained(base, tmp_path / "adapter")


def test_a_saved_adapter_says_what_it_needs(tmp_path):
    AlphaLoraConfig(needs_version="0.0.1").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["needs_version"] == "0.1.0"
    with pytest.raises(ValueError, match="needs_version must be a version, not 'soon'"):
        AlphaLoraConfig(needs_version="soon")


@pytest.mark.refused("Robustness", "a truncated or tampered adapter file, by plain PEFT")
@pytest.mark.parametrize("harm", ["truncated", "header", "renamed"])
def test_a_damaged_file_fails_and_leaves_no_half_loaded_adapter(tmp_path, harm):
    shutil.copytree(STORED[-1] / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    content = file.read_bytes()
    changed = {
        "truncated": content[:-100],
        "header": content[:20] + b"!" + content[21:],
        "renamed": content.replace(b"alphalora_router", b"alphalora_rooter", 1),
    }
    file.write_bytes(changed[harm])
    base = AutoModelForCausalLM.from_pretrained(STORED[-1] / "base")
    with pytest.raises(Exception, match="deserializing header|no tensor for .*alphalora_router"):
        PeftModel.from_pretrained(base, tmp_path / "adapter")


@pytest.mark.works("Robustness", "no pickle that could run code is loaded")
def test_no_module_unpickles():
    package = Path(axolotl_alphalora.__file__).parent
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert name not in ("pickle.load", "pickle.loads", "pickle.Unpickler"), file
            if name == "torch.load":
                options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert options.get("weights_only") == "True", file
