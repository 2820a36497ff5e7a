"""What is read of a saved adapter without PEFT, and what is refused before vLLM loads anything."""

import json

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from axolotl_alphalora.adapter import AlphaLoraConfig, AlphaLoraLayer
from axolotl_alphalora.mixture import Mixture
from axolotl_alphalora.vllm.saved import open_weights, read_adapter
from helpers.vllm_layers import modules, save_adapter

PLAN = {name: 2 for name in modules()}
OPTIONS = [
    {},
    {"top_k": 0.5, "segments": 2, "router_rank": 3, "share_a": True, "lora_alpha": 3.5},
    {"use_rslora": True, "rank_pattern": {"model.layers.1.mlp.gate_proj": 2}, "top_k": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_peft_saves_is_read_as_peft_reads_it(tiny_llama, tmp_path, options):
    names = [n for n, _ in tiny_llama.named_modules() if n.endswith("_proj")]
    counts = {name: i % 4 for i, name in enumerate(names)}
    config = AlphaLoraConfig(r=4, num_experts=counts, **options)
    model = get_peft_model(tiny_llama, config)
    model.save_pretrained(tmp_path)
    found = read_adapter(tmp_path)
    layers = {m.module_name: m for m in model.modules() if isinstance(m, AlphaLoraLayer)}
    assert found.planned == {name: count for name, count in counts.items() if count}
    assert found.base_blocks == {"model.layers": 2}
    with open_weights(found) as weights:
        for name, layer in layers.items():
            assert found.scaling(name) == layer.scaling["default"]
            shapes = found.shapes(name, layer.in_features, layer.out_features)
            for part, shape in shapes.items():
                own = getattr(layer, part)["default"]
                assert weights.shape(name, part) == shape == list(own.shape)
                assert torch.equal(weights.tensor(name, part), own)


def test_an_adapter_of_an_older_release_is_read(tmp_path):
    save_adapter(tmp_path, PLAN)
    path = tmp_path / "adapter_config.json"
    settings = json.loads(path.read_text())
    for name in ("segments", "router_rank", "share_a", "rank_pattern"):
        del settings[name]
    path.write_text(json.dumps(settings))
    found = read_adapter(tmp_path)
    assert found.mixture == Mixture() and set(found.ranks.values()) == {4}


def digest(folder, planned=PLAN, **options):
    save_adapter(folder, planned, **options)
    return read_adapter(folder).digest()


def test_the_digest_tells_graphs_apart(tmp_path):
    shapes = [
        {},
        {"planned": PLAN | {"model.layers.0.mlp.up_proj": 3}},
        {"ranks": {"model.layers.0.mlp.up_proj": 2}},
        *({"mixture": m} for m in (Mixture(1), Mixture(0.5), Mixture(2, 2), Mixture(2, 1, 3))),
        {"mixture": Mixture(share_a=True)},
    ]
    found = [digest(tmp_path, **shape) for shape in shapes]
    assert len(set(found)) == len(found)
    assert digest(tmp_path, lora_alpha=3) == found[0], "scales are weights, not the graph"


REFUSED = {
    "a plain LoRA": ({"peft_type": "LORA"}, "no AlphaLoRA adapter.*--enable-lora"),
    "another method": ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "a newer release": ({"needs_version": "99.0"}, "needs axolotl-alphalora 99.0"),
    "modules trained in full": ({"modules_to_save": ["lm_head"]}, "modules_to_save.*lm_head"),
    "one count for all": ({"num_experts": 3}, "is damaged"),
    "a rank that cannot be cut": ({"segments": 3}, "rank of model.*segments: 3"),
}


@pytest.mark.refused("Serving", "`modules_to_save` in vLLM")
@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_served_is_refused_by_name(tmp_path, why):
    changes, message = REFUSED[why]
    save_adapter(tmp_path, PLAN, **changes)
    with pytest.raises(ValueError, match=message):
        read_adapter(tmp_path)


def test_a_directory_without_an_adapter_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no adapter"):
        read_adapter(tmp_path / "nowhere")
    save_adapter(tmp_path, PLAN)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="has no adapter_model.safetensors"):
        read_adapter(tmp_path)


def test_weights_of_another_adapter_are_refused(tmp_path):
    save_adapter(tmp_path, PLAN)
    path = tmp_path / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.lm_head.weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="lm_head.weight, which is no expert's.*vocabulary"):
        with open_weights(read_adapter(tmp_path)):
            pass
    save_adapter(tmp_path, PLAN)
    key = "base_model.model.model.layers.9.mlp.up_proj.alphalora_A"
    save_file(load_file(path) | {key: torch.ones(2)}, path)
    with pytest.raises(ValueError, match="layers.9.*do not belong together"):
        with open_weights(read_adapter(tmp_path)):
            pass
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="is damaged"), open_weights(read_adapter(tmp_path)):
        pass
