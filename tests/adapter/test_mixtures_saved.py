"""Adapters of every combination of segments, share, router rank and shared A, on disk."""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.inspection import inspect_weights
from helpers.kinds import adapted, assert_same, config, forward, fresh, layers, outputs, trainable
from helpers.mixtures import COMBINATIONS, EVERYTHING, named
from helpers.models import tiny_llama

every_mixture = pytest.mark.parametrize("options", COMBINATIONS, ids=named)
IDS = torch.tensor([[5, 6, 7, 8, 9, 3], [4, 3, 2, 1, 11, 12]])
COUNTS = {
    "model.layers.0.self_attn.q_proj": 1,
    "model.layers.0.mlp.down_proj": 3,
    "model.layers.1.self_attn.q_proj": 5,
}
RANKS = {"model.layers.0.mlp.down_proj": 2}


def train(model, steps=3):
    optimizer = torch.optim.SGD(trainable(model).values(), lr=0.5)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        forward(model)[1].backward()
        optimizer.step()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtures")
    tiny_llama().save_pretrained(folder / "base")
    torch.save(IDS, folder / "ids.pt")
    for options in COMBINATIONS:
        shape = {"num_experts": COUNTS, "target_modules": None, "rank_pattern": RANKS}
        base = AutoModelForCausalLM.from_pretrained(folder / "base")
        model = get_peft_model(base, config("linear", **shape, **options))
        train(model)
        target = folder / f"adapter-{named(options)}"
        model.save_pretrained(target)
        with torch.no_grad():
            torch.save(model.eval()(IDS).logits, target / "logits.pt")
    return folder


@pytest.mark.works(
    "PEFT", "`segments`, `router_rank`, `share_a` and `top_k` as a share, in every combination"
)
def test_plain_peft_opens_all_of_them_in_a_new_process(folder, fresh_process):
    done = fresh_process(Path(__file__).with_name("reload_mixtures.py"), folder)
    errors = json.loads(done.stdout.strip().splitlines()[-1])
    assert errors == {f"adapter-{named(options)}": 0.0 for options in COMBINATIONS}


@every_mixture
def test_the_saved_config_speaks_of_experts_as_planned(folder, options):
    target = folder / f"adapter-{named(options)}"
    saved = json.loads((target / "adapter_config.json").read_text())
    assert {key: saved[key] for key in options} == options
    assert (saved["num_experts"], saved["r"]) == (COUNTS, 4)


@every_mixture
def test_inspection_reads_them(folder, options):
    target = folder / f"adapter-{named(options)}"
    found = inspect_weights(target)
    model = PeftModel.from_pretrained(fresh("linear"), target)
    m = options["segments"]
    for row in found.modules:
        layer = layers(model)[row.name]
        assert len(row.experts) == layer.num_experts["default"] == m * COUNTS[row.name]
        assert row.rank == layer.r["default"] and row.scaling == layer.scaling["default"]
        a, b = (getattr(layer, f"alphalora_{part}")["default"].detach() for part in "AB")
        for e, expert in enumerate(row.experts):
            start = e * row.rank % len(a)
            update = b[:, e * row.rank : (e + 1) * row.rank] @ a[start : start + row.rank]
            assert expert.norm == pytest.approx(float(update.norm() * row.scaling), rel=1e-4)
        assert found.chooses(row) == (layer.top_k["default"] < layer.num_experts["default"])
    assert found.parameters == sum(
        p.numel() for n, p in model.named_parameters() if "alphalora_" in n
    )


@every_mixture
def test_training_goes_on_from_a_saved_adapter(options, tmp_path):
    model = adapted("linear", **options)
    train(model)
    model.save_pretrained(tmp_path)
    resumed = PeftModel.from_pretrained(fresh("linear"), tmp_path, is_trainable=True)
    train(model)
    train(resumed)
    assert_same(outputs(resumed), outputs(model))


@every_mixture
def test_adapters_of_other_shapes_live_side_by_side_and_are_deleted(options):
    model = adapted("linear", top_k=1)
    want = outputs(model)
    model.add_adapter("other", config("linear", **options))
    model.set_adapter("other")
    train(model)
    assert (outputs(model) - want).abs().max() > 1e-3
    model.set_adapter("default")
    assert_same(outputs(model), want)
    model.delete_adapter("other")
    assert not [name for name, _ in model.named_parameters() if "other" in name]
    assert_same(outputs(model), want)
    # Of the same name and another shape, nothing of the old one stays.
    model.add_adapter("other", config("linear"))
    assert not any(layer.alphalora_router_down for layer in layers(model).values())


@every_mixture
def test_merging_is_refused(options):
    with pytest.raises(ValueError, match="cannot be merged"):
        adapted("linear", **options).merge_and_unload()


def test_an_adapter_without_the_new_keys_opens(tmp_path):
    model = adapted("linear")
    train(model)
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    saved = json.loads(file.read_text())
    for key in ("segments", "router_rank", "share_a"):
        del saved[key]
    file.write_text(json.dumps(saved))
    assert_same(outputs(PeftModel.from_pretrained(fresh("linear"), tmp_path)), outputs(model))
    assert inspect_weights(tmp_path).config.mixture == model.peft_config["default"].mixture


@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_everything_at_once_on_a_4_bit_base(checkpointing, tmp_path):
    model = adapted("4-bit", lora_dropout=0.2, **EVERYTHING)
    if checkpointing is not None:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": checkpointing}
        )
    before = {name: p.detach().clone() for name, p in trainable(model).items()}
    torch.manual_seed(3)
    train(model)
    assert all((p - before[name]).any() for name, p in trainable(model).items())
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(fresh("4-bit"), tmp_path)
    assert_same(outputs(again), outputs(model))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"segments": 1}, r"down_proj.alphalora_router.*holds \(6, 3\).*give \(3, 3\)"),
        ({"router_rank": None}, r"alphalora_router.*holds \(6, 3\).*give \(6, "),
        ({"share_a": False}, r"alphalora_A.*holds \(4, .*rank_pattern give \(12, "),
    ],
    ids=str,
)
def test_weights_of_another_shape_are_refused_by_name(tmp_path, wrong, message):
    adapted("linear", target_modules=["down_proj"], **EVERYTHING).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | wrong))
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(fresh("linear"), tmp_path)
    with pytest.raises(ValueError, match="are not those of 3 experts of rank 4"):
        inspect_weights(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 6, "segments": 4}, "r is 6, which segments: 4 cannot cut"),
        (
            {"r": 8, "segments": 4, "rank_pattern": {"m": 6}},
            r"rank_pattern\['m'\] is 6, which segments: 4",
        ),
        ({"segments": 0}, "segments must be at least 1"),
        ({"top_k": 1.5}, r"share of a layer's experts in \(0, 1\)"),
        ({"router_rank": 0}, "router_rank must be at least 1"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AlphaLoraConfig(**changes)


def test_a_rank_that_no_module_has_need_not_be_cut():
    AlphaLoraConfig(r=6, segments=4, num_experts={"a": 2, "b": 0}, rank_pattern={"a": 8})
    with pytest.raises(ValueError, match="r is 6"):
        AlphaLoraConfig(r=6, segments=4, num_experts={"a": 2, "b": 1}, rank_pattern={"a": 8})


def test_the_parameters_are_those_that_a_budget_counts():
    for options in COMBINATIONS:
        model = get_peft_model(copy.deepcopy(fresh("linear")), config("linear", **options))
        mixture = model.peft_config["default"].mixture
        counted = sum(
            mixture.parameters(layer.in_features, layer.out_features, 3, 4)
            for layer in layers(model).values()
        )
        assert model.get_nb_trainable_parameters()[0] == counted
