"""What we rely on of PEFT."""

import inspect

import pytest
import torch
from torch import nn

from axolotl_alphalora.hosts import constants
from axolotl_alphalora.hosts import peft as peft_names
from axolotl_alphalora.hosts import transformers as transformers_names
from helpers.contracts.registry import checks, takes, tiny


@checks(
    "peft",
    "PEFT_TYPE_TO_CONFIG_MAPPING",
    "PEFT_TYPE_TO_PREFIX_MAPPING",
    "PEFT_TYPE_TO_TUNER_MAPPING",
)
def tables_of_methods():
    from peft import LoraConfig, LoraModel, PeftType

    for table, of_lora in (
        (peft_names.PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig),
        (peft_names.PEFT_TYPE_TO_PREFIX_MAPPING, "lora_"),
        (peft_names.PEFT_TYPE_TO_TUNER_MAPPING, LoraModel),
    ):
        assert table[PeftType.LORA] == of_lora


@checks("peft")
def BaseTuner():
    """What we override is there, and is called with what ours takes."""
    from peft import PeftModel

    from axolotl_alphalora.adapter import AlphaLoraModel

    ours = {
        name: getattr(AlphaLoraModel, name)
        for name, value in vars(AlphaLoraModel).items()
        if isinstance(value, staticmethod | classmethod) or inspect.isfunction(value)
    }
    del ours["__init__"], ours["_enable_peft_forward_hooks"]
    assert "base_model._enable_peft_forward_hooks(" in inspect.getsource(PeftModel)
    assert len(ours) == 11
    for name, method in ours.items():
        theirs = inspect.signature(getattr(peft_names.BaseTuner, name)).parameters
        kinds = {p.kind for p in inspect.signature(method).parameters.values()}
        if inspect.Parameter.VAR_POSITIONAL not in kinds:
            named = [n for n, p in theirs.items() if p.kind is not inspect.Parameter.VAR_KEYWORD]
            found = list(inspect.signature(method).parameters)
            assert [n for n in found if n in named] == [n for n in named if n in found], name
            assert {n for n in named if theirs[n].default is inspect.Parameter.empty} <= {*found}
    takes(peft_names.BaseTuner._remove_adapter_name_from_key, "key", "adapter_name")


@checks("peft")
def BaseTunerLayer():
    layer = peft_names.BaseTunerLayer
    takes(layer._move_adapter_to_device_of_base_layer, "self", "adapter_name")
    takes(layer._cast_input_dtype, "self", "x", "dtype")
    takes(layer.set_adapter, "self", "adapter_names", "inference_mode")
    takes(layer.get_base_layer, "self")
    assert isinstance(layer.active_adapters, property)
    assert isinstance(layer.disable_adapters, property)
    assert {"adapter_layer_names", "other_param_names"} <= layer.__annotations__.keys()
    source = inspect.getsource(layer)
    for attribute in ("_disable_adapters", "_active_adapter", "merged_adapters"):
        assert attribute in source


@checks("peft")
def check_target_module_exists():
    from peft import LoraConfig

    def found(name, **settings):
        return peft_names.check_target_module_exists(LoraConfig(**settings), name)

    assert found("model.q_proj", target_modules=["q_proj"])
    assert not found("model.v_proj", target_modules=["q_proj"])
    assert not found("model.q_proj", target_modules=["q_proj"], exclude_modules=["q_proj"])
    layers = {"target_modules": ["q_proj"], "layers_to_transform": [1]}
    assert found("model.layers.1.q_proj", **layers)
    assert not found("model.layers.0.q_proj", **layers)


@checks("peft")
def in_out_features():
    assert peft_names.in_out_features(nn.Linear(3, 5)) == (3, 5)
    assert peft_names.in_out_features(transformers_names.Conv1D(5, 3)) == (3, 5)


@checks("peft", "include_all_linear_layers", "INCLUDE_LINEAR_LAYERS_SHORTHAND")
def all_linear():
    from peft import LoraConfig

    assert peft_names.INCLUDE_LINEAR_LAYERS_SHORTHAND == "all-linear"
    config, model = LoraConfig(target_modules="all-linear"), tiny()
    peft_names.include_all_linear_layers(config, model)
    assert "lm_head" not in config.target_modules
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    assert all(
        n in config.target_modules or n.split(".")[-1] in config.target_modules for n in layers
    )


@checks("peft")
def TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING():
    table = peft_names.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    assert list(table["llama"]) == ["q_proj", "v_proj"]


@checks("peft")
def IncrementalPCA():
    """What we set, and the way past the check that the last rows are as many as the components."""
    pca = peft_names.IncrementalPCA
    takes(pca.__init__, "n_components", "lowrank", "lowrank_q", "lowrank_seed")
    takes(pca.partial_fit, "self", "X", "check_input")
    found = pca(n_components=2, lowrank=True, lowrank_q=4, lowrank_seed=0)
    rows = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    found.lowrank = False  # read at each update
    found.partial_fit(rows[:49].clone(), check_input=False)
    found.partial_fit(rows[49:].clone(), check_input=False)
    squares = torch.linalg.svdvals(rows - rows.mean(0)).square()
    wanted = (squares / squares.sum())[:2]
    assert torch.allclose(found.explained_variance_ratio_.float(), wanted, rtol=0.02)


@checks("peft")
def ModulesToSaveWrapper():
    base = nn.Linear(1, 1)
    wrapper = peft_names.ModulesToSaveWrapper(base, "default")
    assert wrapper.original_module is base
    assert isinstance(wrapper.modules_to_save["default"], nn.Linear)


@checks("peft")
def get_peft_model_state_dict():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny(), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    )
    found = peft_names.get_peft_model_state_dict(model)
    assert "base_model.model.lm_head.weight" in found
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in found


@checks("peft")
def get_quantization_kwargs():
    assert isinstance(peft_names.get_quantization_kwargs(nn.Linear(1, 1)), dict)


@checks("peft")
def quantization_extra_repr():
    takes(peft_names.quantization_extra_repr, "module")


@checks("peft")
def resolve_quantization_backend():
    assert peft_names.resolve_quantization_backend(nn.Linear(1, 1)) is None
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear8bitLt(8, 8, has_fp16_weights=False)
    found = peft_names.resolve_quantization_backend(layer, get_apply_tensor_subclass=None)
    assert found.layer_type == "linear"


@checks("peft")
def SEQ_CLS_HEAD_NAMES():
    assert {*peft_names.SEQ_CLS_HEAD_NAMES} >= {*constants.CLASSIFIER_HEADS}


@checks("peft")
def dequantize_module_weight():
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4")
    plain = nn.Linear(64, 64, bias=False)
    layer.load_state_dict(plain.state_dict())
    found = peft_names.dequantize_module_weight(layer.to("cpu"))
    assert (found - plain.weight).abs().max() < 0.05


@checks("peft")
def get_pattern_key():
    assert peft_names.get_pattern_key(["q_proj", "v_.*"], "model.v_proj") == "v_.*"
    assert peft_names.get_pattern_key(["q_proj"], "model.v_proj") == "model.v_proj"


@checks("peft")
def lora_variants():
    assert {"use_dora", "alora_invocation_tokens"} <= {*peft_names.lora_variants()}
    assert not {"r", "lora_alpha", "lora_dropout"} & {*peft_names.lora_variants()}


@checks("peft")
def convert_peft_config_for_transformers():
    """What it does to the names of a dense MLP is in tests/export/test_run.py."""
    takes(peft_names.convert_peft_config_for_transformers, "peft_config", "model", "conversions")
