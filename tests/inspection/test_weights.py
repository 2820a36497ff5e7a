"""Statistics of saved experts, against plain loops over the full matrices."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from axolotl_alphalora.inspection import read_experts
from helpers.inspecting import write_adapter

RELEASED = Path(__file__).parents[1] / "adapter" / "releases" / "0.1.0" / "adapter"
Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
UP, DOWN = "model.layers.1.mlp.up_proj", "model.layers.0.mlp.down_proj"


def updates(tensors, name, number, rank, scaling):
    """The full matrices of a module's experts, in double precision."""
    a = tensors[f"base_model.model.{name}.alphalora_A"].double()
    b = tensors[f"base_model.model.{name}.alphalora_B"].double()
    parts = [slice(e * rank, (e + 1) * rank) for e in range(number)]
    return [scaling * b[:, part] @ a[part] for part in parts]


def check(row, matrices):
    pairs = []
    for e, (expert, matrix) in enumerate(zip(row.experts, matrices, strict=True)):
        values = torch.linalg.svdvals(matrix)
        shares = values / values.sum()
        entropy = -sum(p * math.log(p) for p in shares.tolist() if p > 1e-12)
        assert expert.norm == pytest.approx(float(matrix.norm()), rel=1e-5)
        assert expert.effective_rank == pytest.approx(math.exp(entropy), rel=1e-4)
        kept = len(expert.singular_values)
        assert kept == min(row.rank, row.in_features, row.out_features)
        assert expert.singular_values == pytest.approx(values[:kept].tolist(), rel=1e-4)
        for o, other in enumerate(matrices):
            cosine = float((matrix * other).sum() / (matrix.norm() * other.norm()))
            assert row.cosine[e][o] == pytest.approx(cosine, abs=1e-5)
            if o > e:
                pairs.append(abs(cosine))
    if pairs:
        assert row.redundancy == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)
        assert row.max_cosine == pytest.approx(max(pairs), abs=1e-5)
        assert row.pairs[row.closest] == row.max_cosine
    else:
        assert row.redundancy is row.max_cosine is row.closest is None


@pytest.mark.parametrize("rslora", [False, True], ids=["lora", "rslora"])
@pytest.mark.parametrize("r", [1, 4])
def test_every_statistic_is_that_of_the_full_matrices(tmp_path, r, rslora):
    counts = {Q: 1, V: 2, DOWN: 5, UP: 7}
    ranks = {DOWN: 3, V: 20}  # one above the layer's output features
    tensors = write_adapter(tmp_path, counts, ranks=ranks, r=r, use_rslora=rslora)
    rows = read_experts(tmp_path)
    assert [row.name for row in rows] == [Q, V, DOWN, UP]
    for row in rows:
        rank = ranks.get(row.name, r)
        scaling = 16 / (math.sqrt(rank) if rslora else rank)
        assert (row.rank, row.scaling) == (rank, pytest.approx(scaling))
        check(row, updates(tensors, row.name, counts[row.name], rank, scaling))
        size = sum(value.numel() for key, value in tensors.items() if f".{row.name}." in key)
        assert row.parameters == size and row.routed == (counts[row.name] > 1)


def test_a_trained_adapter_of_a_release_is_read_as_peft_saved_it():
    config = json.loads((RELEASED / "adapter_config.json").read_text())
    tensors = load_file(RELEASED / "adapter_model.safetensors")
    rows = read_experts(RELEASED)
    counts = {name: number for name, number in config["num_experts"].items() if number}
    assert {row.name: len(row.experts) for row in rows} == counts
    for row in rows:
        rank = config["rank_pattern"].get(row.name, config["r"])
        scaling = config["lora_alpha"] / rank
        check(row, updates(tensors, row.name, counts[row.name], rank, scaling))


def test_copies_opposites_and_orthogonal_experts(tmp_path):
    def change(tensors):
        a = tensors[f"base_model.model.{UP}.alphalora_A"]
        b = tensors[f"base_model.model.{UP}.alphalora_B"]
        a[4:8], b[:, 4:8] = a[:4], -3 * b[:, :4]
        a[8:12], b[:, 8:12] = 0, 0
        a[8, 0] = b[0, 8] = 1
        a[:8, 0] = 0

    write_adapter(tmp_path, {UP: 3}, change=change)
    (row,) = read_experts(tmp_path)
    assert row.cosine[0][1] == pytest.approx(-1, abs=1e-6)
    assert row.cosine[0][2] == row.cosine[1][2] == 0
    assert row.closest == (0, 1) and row.redundancy == pytest.approx(1 / 3, abs=1e-6)
    assert row.experts[1].norm == pytest.approx(3 * row.experts[0].norm, rel=1e-5)
    assert row.experts[2].effective_rank == pytest.approx(1, abs=1e-5)


def test_untrained_experts_have_no_rank_and_no_direction(tmp_path):
    def change(tensors):
        tensors[f"base_model.model.{Q}.alphalora_B"].zero_()
        tensors[f"base_model.model.{UP}.alphalora_B"][:, :4] = 0

    write_adapter(tmp_path, {Q: 2, UP: 3}, change=change)
    untrained, partly = read_experts(tmp_path)
    assert [expert.norm for expert in untrained.experts] == [0, 0]
    assert [expert.effective_rank for expert in untrained.experts] == [0, 0]
    assert untrained.cosine == ((None, None), (None, None))
    assert untrained.redundancy is untrained.max_cosine is untrained.closest is None
    assert untrained.relative_norms == (None, None)
    assert partly.cosine[0] == (None, None, None) and partly.cosine[1][0] is None
    assert list(partly.pairs) == [(1, 2)] and partly.relative_norms[0] == 0


def test_half_precision_weights_are_read_in_single(tmp_path):
    tensors = write_adapter(tmp_path, {UP: 3})
    stored = {key: value.bfloat16() for key, value in tensors.items()}
    save_file(stored, tmp_path / "adapter_model.safetensors")
    (row,) = read_experts(tmp_path)
    check(row, updates(stored, UP, 3, 4, 4.0))


def test_modules_come_by_depth_and_in_the_order_of_use(tmp_path):
    counts = {f"model.layers.{i}.{kind}": 2 for i in (10, 2) for kind in ("mlp.down_proj",)}
    counts |= {f"model.layers.2.{kind}": 1 for kind in ("mlp.up_proj", "self_attn.q_proj")}
    write_adapter(tmp_path, counts)
    names = [row.name.removeprefix("model.layers.") for row in read_experts(tmp_path)]
    assert names == ["2.self_attn.q_proj", "2.mlp.up_proj", "2.mlp.down_proj", "10.mlp.down_proj"]


def test_other_weights_and_modules_left_alone_do_not_count(tmp_path):
    def change(tensors):
        tensors["base_model.model.lm_head.weight"] = torch.ones(4, 4)

    write_adapter(tmp_path, {Q: 2, V: 0}, change=change)
    assert [row.name for row in read_experts(tmp_path)] == [Q]


def test_one_number_for_all_is_read_from_the_shapes(tmp_path):
    write_adapter(tmp_path, {Q: 3, V: 1}, num_experts=3)
    assert [len(row.experts) for row in read_experts(tmp_path)] == [3, 1]


def _config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _weights(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def _truncate(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


def _pickle(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _checkpoint(folder):
    (folder / "checkpoint-9").mkdir()
    shutil.move(folder / "adapter_config.json", folder / "checkpoint-9")


KEY = f"base_model.model.{Q}.alphalora_"


def _whole_model(folder):
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_model.safetensors").rename(folder / "model.safetensors")


def _pointer(file):
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


FLAWS = {
    "missing": (shutil.rmtree, "is no directory: name the one"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json"),
    "checkpoint": (_checkpoint, "checkpoint-9 has one: name that directory"),
    "broken config": (
        lambda f: (f / "adapter_config.json").write_text("{"),
        r"config.json is damaged .*: use another",
    ),
    "plain": (lambda f: _config(f, peft_type="LORA"), "is a plain LoRA"),
    "other": (lambda f: _config(f, peft_type="OFT"), "its peft_type is 'OFT'"),
    "list": (lambda f: (f / "adapter_config.json").write_text("[]"), "is not an AlphaLoRA adapter"),
    "newer": (lambda f: _config(f, needs_version="9.2"), "needs axolotl-alphalora 9.2 or newer"),
    "odd": (lambda f: _config(f, r="many"), "adapter_config.json is damaged"),
    "no weights": (
        lambda f: (f / "adapter_model.safetensors").unlink(),
        "has no adapter_model.safetensors: use another",
    ),
    "pickle": (_pickle, "A pickle can run code"),
    "truncated": (_truncate, "model.safetensors is damaged"),
    "no B": (lambda f: _weights(f, lambda t: t.pop(KEY + "B")), "q_proj: alphalora_B is missing"),
    "no A": (lambda f: _weights(f, lambda t: t.pop(KEY + "A")), "the weights lack model.layers.0"),
    "no module": (lambda f: _config(f, num_experts={V: 2}), "adapter_config.json lack"),
    "rank": (lambda f: _config(f, r=3), r"not those of 2 experts of rank 3"),
    "router": (lambda f: _weights(f, lambda t: t.pop(KEY + "router")), "router None are not"),
    "whole model": (_whole_model, "it holds a whole model. Name the adapter's"),
    "pointer for weights": (lambda f: _pointer(f / "adapter_model.safetensors"), "git lfs pull"),
    "pointer for config": (lambda f: _pointer(f / "adapter_config.json"), "git lfs pull"),
    "diverged": (
        lambda f: _weights(f, lambda t: t[KEY + "A"].fill_(math.nan)),
        "q_proj: its weights are not finite",
    ),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_what_cannot_be_read_is_said_with_what_to_do(tmp_path, flaw):
    folder = tmp_path / "adapter"
    write_adapter(folder, {Q: 2, V: 2})
    harm, message = FLAWS[flaw]
    harm(folder)
    with pytest.raises(ValueError, match=message):
        read_experts(folder)
