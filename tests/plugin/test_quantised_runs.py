"""Quantised bases in every path of the host: the base is what the YAML asked for, everywhere."""

import json
import math
import re
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TorchAoConfig

import axolotl_alphalora.adapter  # noqa: F401
from axolotl_alphalora.plugin import quantised_base, quantization

KINDS = {4: "Linear4bit", 8: "Linear8bitLt"}
# What the host gives a QLoRA: see its loaders/model.py.
QLORA = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.float32,
    "bnb_4bit_quant_storage": torch.float32,
}
BASES = {4: QLORA, 8: {"load_in_8bit": True}}


def losses(run, step: int = 2) -> list[float]:
    return [row["loss"] for row in run.history(step) if "loss" in row]


def flat(log: str) -> str:
    return " ".join(log.split())


@pytest.fixture(scope="module", params=[4, 8])
def trained(request, host, tmp_path_factory):
    """A run on a 4-bit and one on an 8-bit base."""
    folder = tmp_path_factory.mktemp(f"bits{request.param}")
    steps = {"max_steps": 3, "save_steps": 3, "eval_steps": 3}
    run = host.train(folder, **{f"load_in_{request.param}bit": True}, **steps)
    return request.param, run


@pytest.mark.works("Quantised bases", "nf4 and int8: train, `evaluate`, `inference`, plain PEFT")
def test_each_path_runs_on_the_quantised_base(host, trained, tmp_path):
    bits, run = trained
    asked = {f"load_in_{bits}bit": True, "max_steps": 3}
    assert run.spied["bases"] == {KINDS[bits]: 14}
    assert run.spied["trainable"] == ["torch.float32"]
    falling = losses(run, 3)
    assert all(math.isfinite(loss) for loss in falling) and falling[-1] < falling[0]
    last = [row["eval_loss"] for row in run.history(3) if "eval_loss" in row][-1]

    there = ("--lora-model-dir", str(run.out))
    evaluation = host.run(tmp_path, "evaluate", *there, **asked)
    assert evaluation.spied["bases"] == {KINDS[bits]: 14}
    found = re.findall(r"eval_loss: ([0-9.]+)", evaluation.log)
    assert float(found[-1]) == pytest.approx(last, rel=2e-3)

    answer = host.run(tmp_path, "inference", *there, typed="Repeat 1\n", **asked)
    assert answer.spied["bases"] == {KINDS[bits]: 14}
    assert "Repeat 1" in answer.log

    base = AutoModelForCausalLM.from_pretrained(
        host.workspace / "tiny",
        quantization_config=BitsAndBytesConfig(**BASES[bits]),
        dtype=torch.float32,
    )
    ids = AutoTokenizer.from_pretrained(run.out)("Repeat 1", return_tensors="pt").input_ids
    model = PeftModel.from_pretrained(base, run.out).eval()
    with torch.no_grad():
        adapted = model(ids).logits
        with model.disable_adapter():
            assert (adapted - model(ids).logits).abs().max() > 1e-3
    saved = load_file(run.out / "adapter_model.safetensors")
    parameters = dict(model.named_parameters())
    assert all(parameters[f"{name}.default"].equal(tensor) for name, tensor in saved.items())


@pytest.mark.works("Quantised bases", "resume on nf4 and int8")
def test_a_resumed_run_ends_where_the_whole_one_does(host, tmp_path):
    for bits in (4, 8):
        whole, part = tmp_path / f"whole{bits}", tmp_path / f"part{bits}"
        whole.mkdir()
        part.mkdir()
        # An evaluation lets bitsandbytes repack 4-bit weights on some CPUs, changing rounding.
        changes = {f"load_in_{bits}bit": True, "val_set_size": 0, "eval_steps": ...}
        changes |= {"max_steps": 2, "save_steps": 1}
        full = host.train(whole, **changes)
        shutil.copytree(full.out / "checkpoint-1", part / "out" / "checkpoint-1")
        resumed = host.train(part, **changes, auto_resume_from_checkpoints=True)
        got = load_file(resumed.out / "adapter_model.safetensors")
        for name, tensor in load_file(full.out / "adapter_model.safetensors").items():
            assert got[name].equal(tensor), name


def quantised(host, folder, config):
    base = folder / "quantised"
    shutil.copytree(host.workspace / "tiny", base)
    model = AutoModelForCausalLM.from_pretrained(
        host.workspace / "tiny", quantization_config=config
    )
    (base / "model.safetensors").unlink()
    model.save_pretrained(base)
    return base


@pytest.mark.works("Quantised bases", "bitsandbytes checkpoints, with and without `load_in_*bit`")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_checkpoint_in_4_or_8_bits_may_be_asked_for_as_what_it_is(host, tmp_path, bits):
    base = quantised(host, tmp_path, BitsAndBytesConfig(**BASES[bits]))
    # A step of SGD carries a difference in rounding on as it is, one of Adam may not.
    sgd = {"optimizer": "sgd", "learning_rate": 1.0}
    common = {"base_model": str(base), "max_steps": 2, "save_steps": 2, **sgd}
    runs = []
    for name, asked in (("silent", {}), ("asked", {f"load_in_{bits}bit": True})):
        (tmp_path / name).mkdir()
        runs.append(host.train(tmp_path / name, **common, **asked))
        assert runs[-1].spied["bases"] == {KINDS[bits]: 14}
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-3)
    other = 12 - bits
    run = host.run(tmp_path, "train", **common, **{f"load_in_{other}bit": True})
    assert run.code != 0
    assert f"is quantised already (bitsandbytes, {bits}-bit)" in flat(run.log)
    assert "Loading weights" not in run.log


@pytest.mark.works("Quantised bases", "torchao checkpoints (int8 weights)")
def test_a_torchao_checkpoint_trains(host, tmp_path):
    from torchao.quantization import Int8WeightOnlyConfig

    base = quantised(host, tmp_path, TorchAoConfig(Int8WeightOnlyConfig(version=2)))
    run = host.train(tmp_path, base_model=str(base), max_steps=2, save_steps=2)
    assert losses(run)[1] < losses(run)[0]
    plan = json.loads((run.out / "adapter_config.json").read_text())["plan"]
    assert plan["weights"]["source"] == "live"


def checkpoint_of(host, folder, method):
    base = folder / method
    shutil.copytree(host.workspace / "tiny", base)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (base / "config.json").write_text(json.dumps(config))
    return base


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(
            "gptq", marks=pytest.mark.refused("Quantised bases", "GPTQ without its package")
        ),
        pytest.param(
            "awq", marks=pytest.mark.refused("Quantised bases", "AWQ without its package")
        ),
        pytest.param(
            "hqq", marks=pytest.mark.refused("Quantised bases", "HQQ without its package")
        ),
    ],
)
def test_a_missing_package_is_named_before_the_model_is_loaded(host, tmp_path, monkeypatch, method):
    base = checkpoint_of(host, tmp_path, method)
    monkeypatch.setattr(quantised_base, "find_spec", lambda name: None)
    cfg = {"base_model": str(base)}
    found = quantization.checkpoint_quantization(cfg)
    package = {"hqq": "hqq"}.get(method, "gptqmodel")
    with pytest.raises(ValueError, match=f"quantised with {method}.*`pip install {package}`"):
        quantised_base.check_checkpoint(cfg, found)


@pytest.mark.refused("Quantised bases", "other methods (compressed-tensors, fp8, mxfp4, ...)")
def test_other_methods_are_refused_by_name(host, tmp_path):
    base = checkpoint_of(host, tmp_path, "compressed-tensors")
    run = host.run(tmp_path, "train", base_model=str(base))
    assert run.code != 0
    assert "is quantised with compressed-tensors, whose layers cannot carry experts" in flat(
        run.log
    )


@pytest.mark.refused("Quantised bases", "a quantised checkpoint asked for in another precision")
def test_a_quantised_checkpoint_cannot_be_quantised_again(host, tmp_path):
    base = checkpoint_of(host, tmp_path, "gptq")
    run = host.run(tmp_path, "train", base_model=str(base), load_in_4bit=True)
    assert run.code != 0
    assert "is quantised already (gptq). Remove `load_in_4bit`" in flat(run.log)
    base = quantised(host, tmp_path, BitsAndBytesConfig(**QLORA))
    run = host.run(
        tmp_path,
        "train",
        base_model=str(base),
        load_in_4bit=True,
        bnb_config_kwargs={"bnb_4bit_use_double_quant": False},
    )
    assert "`bnb_config_kwargs` says how to quantise the base model" in flat(run.log)


NF4_CHECKPOINT = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.mark.refused(
    "Scale-out", "FSDP2, checkpoints of other methods, packed in fp32, or not named in the YAML"
)
@pytest.mark.parametrize(
    ("found", "asked", "words"),
    [
        (NF4_CHECKPOINT, {}, "Set `load_in_4bit: true`"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, {}, "Set `load_in_8bit: true`"),
        (
            NF4_CHECKPOINT | {"bnb_4bit_quant_storage": "float32"},
            {"load_in_4bit": True, "bf16": "auto"},
            "keeps its weights in float32.*in bfloat16 or uint8",
        ),
        ({"quant_method": "torchao"}, {}, "those of bitsandbytes only.*quantised with torchao"),
    ],
    ids=str,
)
def test_a_quantised_checkpoint_that_fsdp_cannot_shard_is_refused(found, asked, words):
    cfg = {"base_model": "./nf4", **asked}
    quantised_base.check_checkpoint(cfg, found)
    with pytest.raises(ValueError, match=words) as error:
        quantised_base.check_checkpoint(cfg | {"fsdp_config": {"fsdp_version": 2}}, found)
    assert "`base_model: ./nf4`" in str(error.value)


@pytest.mark.parametrize(
    ("storage", "bf16"), [("uint8", True), ("bfloat16", True), (None, True), ("float32", False)]
)
def test_a_quantised_checkpoint_whose_packing_fits_is_accepted_under_fsdp(storage, bf16):
    cfg = {"base_model": "./nf4", "load_in_4bit": True, "bf16": bf16, "fsdp_config": {"a": 1}}
    quantised_base.check_checkpoint(cfg, NF4_CHECKPOINT | {"bnb_4bit_quant_storage": storage})


@pytest.mark.parametrize(
    "package",
    [
        pytest.param(
            "gptqmodel",
            marks=pytest.mark.untested(
                "Quantised bases", "GPTQ and AWQ checkpoints", "need gptqmodel and CUDA"
            ),
        ),
        pytest.param(
            "hqq", marks=pytest.mark.untested("Quantised bases", "HQQ checkpoints", "need CUDA")
        ),
    ],
)
def test_a_checkpoint_of_another_package_trains(host, tmp_path, package):
    pytest.importorskip(package)
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if package == "hqq":
        from transformers import HqqConfig

        config = HqqConfig(nbits=4, group_size=64)
    else:
        from transformers import GPTQConfig

        tokenizer = AutoTokenizer.from_pretrained(host.workspace / "tiny")
        config = GPTQConfig(bits=4, dataset=["hello world " * 40], tokenizer=tokenizer)
    base = quantised(host, tmp_path, config)
    run = host.train(tmp_path, base_model=str(base), max_steps=2, save_steps=2)
    assert losses(run)[1] < losses(run)[0]
