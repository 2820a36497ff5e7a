"""What is asked of vLLM by a name that may be missing is there; run by `.ci/vllm`."""

import importlib.util
import inspect
from dataclasses import fields
from types import SimpleNamespace
from typing import get_args

import pytest

from axolotl_alphalora.export.servers import VLLM_RANKS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="needs vLLM: .ci/vllm has it"
)


def names(config):
    return {field.name for field in fields(config)}


def test_the_options_that_are_refused_have_these_names():
    from vllm.config import ModelConfig, ParallelConfig, VllmConfig

    from axolotl_alphalora.vllm.loader import UNTESTED

    refused = {"lora_config", "speculative_config", "weight_transfer_config"}
    assert refused | {"additional_config"} <= names(VllmConfig)
    assert set(UNTESTED) <= names(ParallelConfig)
    assert isinstance(ModelConfig.use_mla, property)
    assert {"model", "revision"} <= names(ModelConfig)


def test_models_that_reorder_rows_are_known_by_these_names():
    from vllm.model_executor.models import bloom, falcon, llama4

    assert hasattr(llama4.Llama4ForCausalLM, "permute_qk_weight_for_rotary")
    for model in (bloom, falcon):
        assert "self.query_key_value = QKVParallelLinear(" in inspect.getsource(model)


def test_models_say_by_these_names_what_is_fused_and_renamed():
    from vllm.model_executor.models.llama import LlamaForCausalLM
    from vllm.model_executor.models.transformers import base
    from vllm.model_executor.models.utils import WeightsMapper

    assert "q_proj" in LlamaForCausalLM.packed_modules_mapping["qkv_proj"]
    assert isinstance(LlamaForCausalLM.hf_to_vllm_mapper, WeightsMapper)
    assert "self.packed_modules_mapping.update(" in inspect.getsource(base)
    mapper = WeightsMapper(orig_to_new_prefix={"model.": "language_model."})
    assert mapper.get_rename_mapper().map_name("model.norm.weight") == "language_model.norm.weight"


def test_a_layer_that_says_so_gets_no_quantised_input():
    from vllm.model_executor.layers.fusion.quant_activation import get_input_quant_key
    from vllm.model_executor.layers.linear import LinearBase

    assert LinearBase.requires_unquantized_input is False
    layer = SimpleNamespace(_input_quant_key="key", requires_unquantized_input=False)
    assert get_input_quant_key(layer) == "key"
    layer.requires_unquantized_input = True
    assert get_input_quant_key(layer) is None


def test_fused_experts_say_by_this_name_that_they_join_their_gates():
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    source = inspect.getsource(MoERunner)
    for name in ("_fse_fuse_gate", "gate", "shared_expert_gate"):
        assert f"self.{name} = " in source


def test_weights_are_loaded_again_by_the_models_own_method():
    from vllm.model_executor.model_loader.reload import inplace

    source = inspect.getsource(inplace.reload_weights)
    assert "model.load_weights(" in source and ".get_all_weights(" in source


def test_the_ranks_that_it_takes_are_known():
    from vllm.config.lora import MaxLoRARanks

    assert get_args(MaxLoRARanks) == VLLM_RANKS
