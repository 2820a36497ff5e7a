"""A directory is analysed whole, or what is trained of it is refused: never a part in silence."""

import json
import re

import pytest
import torch
import transformers as hf
from axolotl.loaders.constants import MULTIMODAL_AUTO_MODEL_MAPPING
from safetensors.torch import load_file, save_file

from axolotl_alphalora import analyze
from axolotl_alphalora.analysis import measure_model
from axolotl_alphalora.planning import PlanRequest, Targets, layers
from axolotl_alphalora.report.findings import Findings
from axolotl_alphalora.report.quality_sentences import explain
from axolotl_alphalora.report.words import WARNING
from axolotl_alphalora.spectral import BaseModel, Cache
from axolotl_alphalora.spectral.definition import linear_layers, trained_class, whole_class
from helpers.checkpoints import CONFIGS, pickled, tiny_model

_TOKENS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
_BART = {
    "vocab_size": 97,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 32,
    **_TOKENS,
}
_T5 = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_TEXT = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    **_TOKENS,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}

ENCODER_DECODERS = {
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**_BART)),
    "mbart": lambda: hf.MBartForConditionalGeneration(hf.MBartConfig(**_BART)),
    "pegasus": lambda: hf.PegasusForConditionalGeneration(hf.PegasusConfig(**_BART)),
    "marian": lambda: hf.MarianMTModel(hf.MarianConfig(**_BART)),
    "blenderbot": lambda: hf.BlenderbotForConditionalGeneration(hf.BlenderbotConfig(**_BART)),
    "mvp": lambda: hf.MvpForConditionalGeneration(hf.MvpConfig(**_BART)),
    "plbart": lambda: hf.PLBartForConditionalGeneration(hf.PLBartConfig(**_BART)),
    "prophetnet": lambda: hf.ProphetNetForConditionalGeneration(
        hf.ProphetNetConfig(
            vocab_size=97,
            hidden_size=32,
            num_encoder_layers=3,
            num_decoder_layers=2,
            num_encoder_attention_heads=4,
            num_decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            **_TOKENS,
        )
    ),
    "whisper": lambda: hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(
            **_BART | {"vocab_size": 128},
            num_mel_bins=8,
            max_source_positions=16,
            max_target_positions=16,
        )
    ),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**_T5)),
}

COMPOSITES = {
    "gemma3": lambda: tiny_model("gemma3"),
    "llava": lambda: tiny_model("llava"),
    "mllama": lambda: hf.MllamaForConditionalGeneration(
        hf.MllamaConfig(
            text_config=_TEXT | {"cross_attention_layers": [1]},
            vision_config=_VISION
            | {
                "attention_heads": 4,
                "num_global_layers": 1,
                "vision_output_dim": 64,
                "intermediate_layers_indices": [0],
                "supported_aspect_ratios": [[1, 1]],
            },
        )
    ),
    "voxtral": lambda: hf.VoxtralForConditionalGeneration(
        hf.VoxtralConfig(
            audio_config={
                "hidden_size": 32,
                "intermediate_size": 128,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "num_mel_bins": 8,
                "max_source_positions": 16,
            },
            text_config=_TEXT | {"model_type": "llama"},
            audio_token_id=3,
        )
    ),
    "llama4": lambda: hf.Llama4ForConditionalGeneration(
        hf.Llama4Config(
            text_config=_TEXT
            | {"intermediate_size_mlp": 48, "num_local_experts": 2, "num_experts_per_tok": 1},
            vision_config=_VISION
            | {
                "vision_output_dim": 32,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
            },
        )
    ),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ALPHALORA_CACHE", str(tmp_path_factory.getbasetemp() / "classes"))


def made(make, seed=0):
    torch.manual_seed(seed)
    return make()


def request(directory):
    return PlanRequest(base_model=str(directory), targets=Targets(linear=True))


@pytest.mark.parametrize("family", {**ENCODER_DECODERS, **COMPOSITES})
def test_a_directory_is_measured_as_the_model_that_was_saved_there(tmp_path, family):
    model = made({**ENCODER_DECODERS, **COMPOSITES}[family])
    model.save_pretrained(tmp_path)
    if family == "bart":
        pickled(tmp_path)
    found = measure_model(tmp_path)
    shapes = linear_layers(model)
    assert [row.module for row in found.matrices] == list(shapes)
    assert not {"left_out", "further_blocks"} & set(found.description)
    weights = BaseModel(str(tmp_path), whole=True).weights(shapes)
    for name in shapes:
        assert torch.equal(weights.tensor(name), model.get_submodule(name).weight), name


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_experts_are_planned_for_no_part_of_an_encoder_decoder(tmp_path, family):
    made(ENCODER_DECODERS[family]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"Experts are planned for language models") as caught:
        layers(request(tmp_path), BaseModel(str(tmp_path)))
    assert str(tmp_path) in str(caught.value)
    if family == "bart":
        assert "BartForCausalLM, leaves out 18 of its 38 linear layers" in str(caught.value)


@pytest.mark.parametrize("family", COMPOSITES)
def test_a_composite_model_is_planned_as_the_host_loads_it(tmp_path, family):
    """Axolotl loads a model that takes images or sound as such, whatever it is trained on."""
    model = made(COMPOSITES[family])
    model.save_pretrained(tmp_path)
    auto = MULTIMODAL_AUTO_MODEL_MAPPING[model.config.model_type]
    host = hf.AutoModelForImageTextToText if isinstance(auto, str) else auto
    assert trained_class(model.config, "x") is host
    base = BaseModel(str(tmp_path))
    shapes = base.layers(linear_layers, "linear")
    assert shapes == linear_layers(model)
    assert any(re.search("vision|visual|audio", name) for name in shapes)


def test_the_encoder_counts_where_config_json_names_a_class_without_a_head(tmp_path):
    """As `facebook/bart-base` does."""
    made(lambda: hf.BartModel(hf.BartConfig(**_BART))).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BartModel"]
    assert len(analyze(tmp_path)) == 3 * 6 + 2 * 10


def test_a_decoder_that_was_saved_as_one_is_whole(tmp_path):
    made(lambda: hf.BartForCausalLM(hf.BartConfig(**_BART))).save_pretrained(tmp_path)
    assert len(analyze(tmp_path)) == 2 * 10
    assert len(BaseModel(str(tmp_path)).layers(linear_layers, "linear")) == 2 * 10


@pytest.mark.parametrize("family", CONFIGS)
def test_one_class_makes_what_is_trained_and_all_of_a_language_model(family):
    assert trained_class(CONFIGS[family], "x") is whole_class(CONFIGS[family], "x")


def test_a_model_without_a_language_model_head_is_refused_either_way():
    for choose in (trained_class, whole_class):
        with pytest.raises(ValueError, match="some/vit is a vit model, .* no language model head"):
            choose(hf.ViTConfig(), "some/vit")


STRAY = {
    "a tower": ("vision_tower.layers.0.attn.q_proj", "left_out"),
    "an encoder": ("model.encoder.layers.1.fc1", "left_out"),
    "an adapter": ("model.layers.0.mlp.extra.lora_A", "left_out"),
    "a block beyond the model's": ("model.layers.2.mlp.up_proj", "further_blocks"),
    "a prediction layer": ("mtp.layers.0.mlp.up_proj", "further_blocks"),
}


def saved_with(directory, extra, family="llama"):
    tiny_model(family).save_pretrained(directory)
    file = directory / "model.safetensors"
    save_file(load_file(file) | extra, file, metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("stray", STRAY)
def test_matrices_that_no_module_takes_are_named(tmp_path, stray):
    name, listed = STRAY[stray]
    extra = {f"{name}.weight": torch.randn(8, 8), f"{name}.bias": torch.randn(8)}
    found = measure_model(saved_with(tmp_path, extra), cache=Cache(tmp_path / "cache"))
    again = measure_model(tmp_path, cache=Cache(tmp_path / "cache"))
    for one in (found, again):
        kept = {key: one.description.get(key) for key in ("left_out", "further_blocks")}
        assert kept == {"left_out": None, "further_blocks": None} | {listed: [name]}
    (said,) = [line for line in explain(Findings.of_measurement(found)) if name in line]
    assert said.startswith(WARNING) == (listed == "left_out")


def test_a_plan_records_what_its_model_leaves_in_the_files(tmp_path):
    from axolotl_alphalora.planning import plan_from_files

    name = "vision_tower.layers.0.attn.q_proj"
    saved_with(tmp_path, {f"{name}.weight": torch.randn(8, 8)})
    plan, _ = plan_from_files(request(tmp_path))
    assert plan.weights["left_out"] == [name]
    findings = Findings.of_plan(plan)
    assert any(line.startswith(WARNING) and name in line for line in explain(findings))


LEFTOVERS = {
    "lm_head.weight": (64, 32),
    "model.layers.0.self_attn.rotary_emb.inv_freq": (4,),
    "model.layers.0.self_attn.masked_bias": (4, 4),
    "model.layers.0.self_attn.q_proj.weight_scale": (4, 4),
    "model.layers.0.relative_attention_bias.weight": (8, 4),
    "model.layers.0.position_embeddings.weight": (8, 4),
    "score.weight": (3, 32),
    "pooler.dense.weight": (32, 32),
}


def test_known_leftovers_are_no_layers(tmp_path):
    extra = {name: torch.randn(shape) for name, shape in LEFTOVERS.items()}
    found = measure_model(saved_with(tmp_path, extra, "tied llama"))
    assert not {"left_out", "further_blocks"} & set(found.description)
