"""`load_in_4bit` and `load_in_8bit` give the base the host builds for its own adapters."""

import json
from contextlib import nullcontext

import pytest
import torch
import yaml
from axolotl.loaders.model import ModelLoader
from axolotl.monkeypatch import fsdp2_qlora
from axolotl.utils.config import normalize_config, validate_config
from axolotl.utils.dict import DictDefault
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from pydantic import ValidationError
from torch import nn
from transformers import BitsAndBytesConfig

from axolotl_alphalora import AlphaLoraPlugin
from axolotl_alphalora.plugin import quantised_base, quantization
from helpers import settings
from helpers.models import word_tokenizer

PATCHES = ["apply_init_sharded_param_patch", "apply_init_unsharded_param_patch"]
BITS = {"load_in_4bit": Linear4bit, "load_in_8bit": Linear8bitLt}
STORAGE = "bnb_4bit_quant_storage"  # the host's inference would cast any other than the dtype
LAYERS = {"transformer_layer_cls_to_wrap": "LlamaDecoderLayer"}
HOST_ADAPTER = {"load_in_4bit": "qlora", "load_in_8bit": "lora"}


class Recording(AlphaLoraPlugin):
    """The real plugin, which also notes what the base is like before the adapter is added."""

    checkpointing = None
    dtypes = None

    def post_model_build(self, cfg, model):
        super().post_model_build(cfg, model)
        if cfg.adapter == "alphalora":
            self.checkpointing = checkpointing_kwargs(model)
            self.dtypes = {name: p.dtype for name, p in model.named_parameters()}

    def load_adapter(self, model, cfg, inference=False, config_only=False):
        return (model, None) if cfg.adapter == "alphalora" else None


@pytest.fixture(autouse=True)
def plugin(monkeypatch):
    return settings.register(monkeypatch, Recording())


@pytest.fixture
def checkpoint(tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


@pytest.fixture
def host_tokenizer():
    return word_tokenizer(eos_token="w1")


def config(checkpoint, **changes) -> DictDefault:
    cfg = settings.validate(
        base_model=checkpoint,
        **{"lora_target_modules": ["q_proj"], "lora_target_linear": None, "fp16": False}
        | {"tf32": False, "attn_implementation": "sdpa", "seed": 1}
        | changes,
    )
    normalize_config(cfg)
    return cfg


def load(cfg, host_tokenizer):
    return ModelLoader(cfg, host_tokenizer).load()[0]


def host_config(cfg, host_tokenizer) -> dict:
    """What the host's own loader makes of the same YAML for one of its adapters."""
    loader = ModelLoader(cfg, host_tokenizer)
    loader._set_quantization_config()
    return loader.model_kwargs["quantization_config"].to_dict()


def checkpointing_kwargs(model):
    layer = model.model.layers[0]
    return layer._gradient_checkpointing_func.keywords if layer.gradient_checkpointing else None


@pytest.mark.parametrize(
    "engine",
    [{}, {"deepspeed": {"zero_optimization": {"stage": 1}}}, {"fsdp_config": LAYERS}],
    ids=["", "zero", "fsdp"],
)
@pytest.mark.parametrize(
    "changes",
    [
        {"load_in_4bit": True},
        {"load_in_4bit": True, "bf16": True},
        {
            "load_in_4bit": True,
            "bnb_config_kwargs": {
                "bnb_4bit_use_double_quant": False,
                "bnb_4bit_quant_type": "fp4",
                "llm_int8_skip_modules": ["down_proj"],
            },
        },
        {"load_in_8bit": True},
    ],
    ids=["4bit", "4bit-bf16", "4bit-kwargs", "8bit"],
)
def test_the_settings_are_those_of_the_host_s_own_adapters(
    changes, engine, checkpoint, host_tokenizer
):
    ours = config(checkpoint, **changes)
    theirs = config(checkpoint, **changes, adapter=HOST_ADAPTER[next(iter(changes))])
    for model_type in ("llama", "jamba", "qwen2_moe", "nemotron_h", "falcon_h1"):
        for cfg in (ours, theirs):
            cfg.model_config_type = model_type
            cfg.update(engine)
        built = BitsAndBytesConfig(**quantization.bnb_config(ours)).to_dict()
        wanted = host_config(theirs, host_tokenizer)
        if "load_in_4bit" in changes and not (
            "deepspeed" in engine or wanted[STORAGE] == "float32"
        ):
            wanted[STORAGE] = str(ours.torch_dtype).removeprefix("torch.")
        assert built == wanted, model_type


def test_nothing_is_built_for_a_full_precision_base(checkpoint):
    cfg = config(checkpoint)
    assert quantization.bnb_config(cfg) is None
    quantization.apply(cfg)
    assert cfg.overrides_of_model_kwargs is None


@pytest.mark.parametrize("flag", BITS)
def test_the_configuration_stays_plain_data(flag, checkpoint):
    cfg = config(checkpoint, **{flag: True})
    for step in (lambda cfg: None, quantization.apply):
        step(cfg)
        kwargs = cfg.to_dict()["overrides_of_model_kwargs"]
        assert kwargs["quantization_config"][flag] is True
        assert json.loads(json.dumps(kwargs)) == kwargs
        assert yaml.safe_load(yaml.safe_dump(kwargs)) == kwargs


@pytest.fixture
def patched(monkeypatch):
    """As if the host had patched FSDP2, which would outlive the test."""
    for name in PATCHES:
        monkeypatch.setattr(getattr(fsdp2_qlora, name), "_axolotl_patched", True, raising=False)


@pytest.mark.parametrize("flag", BITS)
@pytest.mark.parametrize(
    ("device", "rank", "wanted"), [("cuda", "3", 3), ("cuda", None, 0), ("cpu", "3", "cpu")]
)
def test_under_fsdp_each_rank_loads_on_its_own_device(
    flag, device, rank, wanted, checkpoint, host_tokenizer, patched, monkeypatch
):
    cfg = config(checkpoint, fsdp_config=LAYERS, bf16=True, **{flag: True})
    kwargs = cfg.to_dict()["overrides_of_model_kwargs"]
    assert json.loads(json.dumps(kwargs)) == kwargs
    loader = ModelLoader(cfg, host_tokenizer)
    monkeypatch.setattr("axolotl.utils.distributed.get_device_type", lambda: torch.device(device))
    monkeypatch.setenv("LOCAL_RANK", rank) if rank else monkeypatch.delenv("LOCAL_RANK", False)
    quantization.apply(cfg)
    assert loader.model_kwargs["device_map"] == {"": wanted}
    assert loader.model_kwargs["quantization_config"][flag] is True


def test_a_second_validation_keeps_the_placeholders():
    first = settings.validate(load_in_4bit=True, fsdp_config=LAYERS)
    second = validate_config(DictDefault(first.to_dict()))
    assert set(first.overrides_of_model_kwargs) == {"device_map", "quantization_config"}
    assert second.overrides_of_model_kwargs == first.overrides_of_model_kwargs


def test_a_device_map_of_the_user_s_own_is_left_alone(checkpoint, patched):
    cfg = config(
        checkpoint, load_in_4bit=True, fsdp_config=LAYERS, model_kwargs={"device_map": "cpu"}
    )
    quantization.apply(cfg)
    assert cfg.overrides_of_model_kwargs.device_map == "cpu"


@pytest.mark.parametrize("changes", [{"load_in_4bit": True}, {"fsdp_config": LAYERS}], ids=str)
def test_a_device_map_is_set_under_fsdp_on_a_quantised_base_only(changes, checkpoint):
    assert "device_map" not in (config(checkpoint, **changes).overrides_of_model_kwargs or {})


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_of_fsdp2_that_did_not_take_stops_the_run(name, checkpoint, patched, monkeypatch):
    cfg = config(checkpoint, load_in_4bit=True, fsdp_config=LAYERS)
    monkeypatch.delattr(getattr(fsdp2_qlora, name), "_axolotl_patched")
    with pytest.raises(RuntimeError, match=f"{name} did not take.*remove `fsdp_config`"):
        quantization.apply(cfg)


def test_fp16_that_bf16_auto_came_to_is_refused_under_fsdp(checkpoint, patched):
    cfg = config(checkpoint, load_in_4bit=True, fsdp_config=LAYERS, bf16="auto", fp16=None)
    assert cfg.torch_dtype == torch.float16
    with pytest.raises(ValueError, match="`bf16: auto`.*`fsdp_config`"):
        quantization.apply(cfg)


@pytest.mark.parametrize(
    ("storage", "bf16", "refused"),
    [
        ("float32", True, True),
        ("float16", "auto", True),
        ("float32", False, False),
        ("bfloat16", True, False),
        ("uint8", True, False),
    ],
)
@pytest.mark.refused("Scale-out", "FSDP2 in bf16, 4-bit weights packed in fp32 or fp16")
def test_a_storage_that_fsdp_would_cast_is_refused(storage, bf16, refused, checkpoint):
    changes = {"load_in_4bit": True, "bnb_config_kwargs": {STORAGE: storage}, "bf16": bf16}
    with (
        pytest.raises(ValidationError, match=f"{STORAGE}: {storage}`.*bfloat16 or uint8")
        if (refused)
        else nullcontext()
    ):
        config(checkpoint, fsdp_config=LAYERS, **changes)
    config(checkpoint, **changes)


def test_the_user_s_other_model_kwargs_are_kept(checkpoint):
    cfg = config(checkpoint, load_in_4bit=True, model_kwargs={"use_safetensors": True})
    assert cfg.overrides_of_model_kwargs.use_safetensors is True
    assert cfg.overrides_of_model_kwargs.quantization_config == {"load_in_4bit": True}


def test_two_quantisation_configs_contradict(checkpoint):
    own = {"quantization_config": {"load_in_8bit": True}}
    with pytest.raises(ValidationError, match="`load_in_4bit: true` and `model_kwargs.quantiz"):
        config(checkpoint, load_in_4bit=True, model_kwargs=own)


def test_settings_that_bitsandbytes_ignores_are_refused(checkpoint):
    cfg = config(checkpoint, load_in_4bit=True, bnb_config_kwargs={"bnb_4bit_quant_typ": "nf4"})
    with pytest.raises(ValueError, match="`bnb_config_kwargs.bnb_4bit_quant_typ`"):
        quantization.apply(cfg)


@pytest.mark.parametrize("flag", BITS)
def test_the_host_loads_the_base_quantised(flag, checkpoint, host_tokenizer):
    model = load(config(checkpoint, **{flag: True}), host_tokenizer)
    kinds = {name: type(module) for name, module in model.named_modules()}
    assert all(kind is BITS[flag] for name, kind in kinds.items() if name.endswith("_proj"))
    assert kinds["lm_head"] is nn.Linear
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_host_loads_a_full_precision_base_unchanged(checkpoint, host_tokenizer, plugin):
    model = load(config(checkpoint), host_tokenizer)
    assert not any(isinstance(module, tuple(BITS.values())) for module in model.modules())
    assert plugin.checkpointing is None


def test_a_second_loader_of_the_same_configuration_agrees(checkpoint, host_tokenizer):
    cfg = config(checkpoint, load_in_4bit=True)
    first, second = load(cfg, host_tokenizer), load(cfg, host_tokenizer)
    one = first.hf_quantizer.quantization_config.to_dict()
    assert one == second.hf_quantizer.quantization_config.to_dict()


def test_bnb_config_kwargs_reach_the_layers(checkpoint, host_tokenizer):
    kwargs = {"bnb_4bit_quant_type": "fp4", "llm_int8_skip_modules": ["down_proj", "lm_head"]}
    model = load(config(checkpoint, load_in_4bit=True, bnb_config_kwargs=kwargs), host_tokenizer)
    block = model.model.layers[0]
    assert block.self_attn.q_proj.weight.quant_type == "fp4"
    assert type(block.mlp.down_proj) is nn.Linear


def test_a_full_precision_model_is_caught_when_4bit_was_asked_for(checkpoint, tiny_llama):
    cfg = config(checkpoint, load_in_4bit=True)
    with pytest.raises(RuntimeError, match="load_in_4bit: true.*0 Linear4bit.*layers.0.self_attn"):
        quantised_base.assert_quantized(tiny_llama, cfg)


def test_a_single_unconverted_layer_is_caught(checkpoint, host_tokenizer):
    cfg = config(checkpoint, load_in_4bit=True)
    model = load(cfg, host_tokenizer)
    model.model.layers[1].mlp.up_proj = nn.Linear(64, 96, bias=False)
    with pytest.raises(RuntimeError, match="1 full-precision .*`model.layers.1.mlp.up_proj` first"):
        quantised_base.assert_quantized(model, cfg)


@pytest.mark.parametrize(("flag", "other"), [tuple(BITS), tuple(BITS)[::-1]])
def test_the_other_precision_is_caught(flag, other, checkpoint, host_tokenizer):
    model = load(config(checkpoint, **{flag: True}), host_tokenizer)
    with pytest.raises(RuntimeError, match=f"{other}: true.*{BITS[flag].__name__}"):
        quantised_base.assert_quantized(model, config(checkpoint, **{other: True}))


def test_a_quantised_model_is_caught_when_none_was_asked_for(checkpoint, host_tokenizer):
    model = load(config(checkpoint, load_in_4bit=True), host_tokenizer)
    with pytest.raises(RuntimeError, match="neither load_in_4bit nor load_in_8bit.*q_proj"):
        quantised_base.assert_quantized(model, config(checkpoint))


def test_other_settings_than_asked_for_are_caught(checkpoint, host_tokenizer):
    cfg = config(checkpoint, load_in_4bit=True)
    model = load(cfg, host_tokenizer)
    cfg.bnb_config_kwargs = {"bnb_4bit_use_double_quant": False}
    with pytest.raises(RuntimeError, match="bnb_4bit_use_double_quant=True for False"):
        quantised_base.assert_quantized(model, cfg)


def test_a_quantised_checkpoint_needs_no_option(checkpoint, host_tokenizer, tmp_path):
    model = load(config(checkpoint, load_in_4bit=True), host_tokenizer)
    model.save_pretrained(tmp_path / "nf4")
    reloaded = load(config(str(tmp_path / "nf4")), host_tokenizer)
    assert isinstance(reloaded.model.layers[0].mlp.up_proj, Linear4bit)


def test_a_flag_that_comes_after_validation_is_too_late(checkpoint):
    cfg = config(checkpoint)
    cfg.load_in_4bit = True
    with pytest.raises(RuntimeError, match="set after the configuration was validated"):
        quantization.apply(cfg)


@pytest.mark.parametrize("flag", [None, *BITS])
@pytest.mark.parametrize("reentrant", [True, False])
def test_the_user_s_kind_of_checkpointing_wins(flag, reentrant, checkpoint, host_tokenizer, plugin):
    changes = {flag: True} if flag else {}
    cfg = config(
        checkpoint,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
        **changes,
    )
    load(cfg, host_tokenizer)
    assert plugin.checkpointing == {"use_reentrant": reentrant}


@pytest.mark.parametrize("flag", BITS)
def test_without_kwargs_checkpointing_is_not_reentrant(flag, checkpoint, host_tokenizer, plugin):
    # The host leaves the kwargs unset under RL.
    cfg = config(checkpoint, gradient_checkpointing=True, **{flag: True})
    cfg.gradient_checkpointing_kwargs = None
    load(cfg, host_tokenizer)
    assert plugin.checkpointing == {"use_reentrant": False}


@pytest.mark.parametrize("skip", [None, True])
def test_embeddings_stay_out_of_fp32_as_in_the_host(skip, checkpoint, host_tokenizer, plugin):
    cfg = config(checkpoint, load_in_4bit=True, bf16=True, embeddings_skip_upcast=skip)
    model = load(cfg, host_tokenizer)
    assert plugin.dtypes["model.norm.weight"] == torch.float32
    assert plugin.dtypes["model.embed_tokens.weight"] == torch.bfloat16
    assert model.model.norm.weight.dtype == torch.bfloat16


def test_dtypes_after_loading_are_those_of_qlora(checkpoint, host_tokenizer):
    changes = {"load_in_4bit": True, "bf16": True, "gradient_checkpointing": True}
    ours = load(config(checkpoint, **changes), host_tokenizer)
    theirs = load(config(checkpoint, **changes, adapter="qlora"), host_tokenizer)
    base = theirs.get_base_model().state_dict()
    for name, value in ours.state_dict().items():
        twin = name if name in base else name.replace("q_proj.", "q_proj.base_layer.")
        assert base[twin].dtype == value.dtype, name


def test_under_fsdp_the_preparation_is_left_out(checkpoint, tiny_llama):
    cfg = config(checkpoint)
    cfg.load_in_4bit, cfg.fsdp_config = True, {"reshard_after_forward": True}
    quantised_base.prepare(tiny_llama.to(torch.bfloat16), cfg)
    assert tiny_llama.model.norm.weight.dtype == torch.bfloat16
