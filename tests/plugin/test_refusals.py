"""Every adapter option of the host is honoured or refused by name; none does nothing."""

from itertools import chain

import pytest
from axolotl.integrations.config import merge_input_args
from axolotl.integrations.expert_parallel.args import ExpertParallelArgs
from axolotl.integrations.lm_eval.args import LMEvalArgs
from axolotl.integrations.mora.args import MoraArgs
from axolotl.integrations.spectrum.args import SpectrumArgs
from axolotl.utils.config import prepare_plugins, validate_config
from axolotl.utils.dict import DictDefault
from pydantic import ValidationError

from axolotl_alphalora.planning.keys import KEYS, REFUSED_KEYS, check_spelling
from axolotl_alphalora.plugin import refusals
from axolotl_alphalora.plugin.options import HONOURED
from axolotl_alphalora.plugin.refusals import REFUSED
from helpers import settings
from helpers.settings import GPU

pytestmark = pytest.mark.usefixtures("plugin")

KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")

# A validator of the host raises before ours does, with a sentence of its own.
HOST_IS_FIRST = {
    "ple_cpu_offload": "ple_cpu_offload requires qlora",
    "relora": "jagged_restart_steps must be set",
    "nf4_backend": "CPU-staged NF4 requires adapter: qlora",
}
# The host's schema drops these unless the plugin that owns them is loaded.
OTHER_PLUGINS = {
    "mora": MoraArgs,
    "spectrum_top_fraction": SpectrumArgs,
    "lm_eval_post_train": LMEvalArgs,
    "expert_parallel_size": ExpertParallelArgs,
}


def yaml_with(changes) -> DictDefault:
    return DictDefault(settings.base_yaml(**changes))


def host_fields() -> dict:
    return merge_input_args()[0].model_fields


def by_key(row):
    return row.key


@pytest.mark.parametrize("row", REFUSED, ids=by_key)
def test_each_row_refuses_its_example_and_says_why(row):
    with pytest.raises(ValueError) as error:
        refusals.check({"adapter": "alphalora", **row.example})
    assert f"`{row.key}`: {row.reason}. {row.remedy}." in str(error.value)


@pytest.mark.parametrize(
    "row", [row for row in REFUSED if row.key not in OTHER_PLUGINS], ids=by_key
)
def test_each_row_is_refused_by_the_host_s_validation(row, plugin):
    with pytest.raises(ValueError) as error:
        plugin.register(yaml_with(row.example))
        validate_config(yaml_with(row.example))
    assert HOST_IS_FIRST.get(row.key, f"`{row.key}`: {row.reason}") in str(error.value)


@pytest.mark.refused("Scale-out", "FSDP2, quantised base, `cpu_ram_efficient_loading`")
@pytest.mark.parametrize(
    ("key", "changes"),
    [
        (
            "fsdp_config.cpu_ram_efficient_loading",
            {
                "fsdp_config": {"cpu_ram_efficient_loading": True},
                "qlora_sharded_model_loading": True,
                "load_in_4bit": True,
            },
        ),
        (
            "fsdp_config.cpu_ram_efficient_loading",
            {"fsdp_config": {"fsdp_cpu_ram_efficient_loading": True}, "load_in_4bit": True},
        ),
        (
            "fsdp_config.cpu_ram_efficient_loading",
            {"fsdp_config": {"cpu_ram_efficient_loading": True}, "load_in_8bit": True},
        ),
        ("quantize_moe_experts", {"quantize_moe_experts": True, "load_in_4bit": True}),
    ],
    ids=str,
)
def test_where_the_host_would_advise_what_fails_here_this_advice_comes_first(key, changes):
    row = next(row for row in REFUSED if row.key == key)
    with pytest.raises(ValueError) as error:
        prepare_plugins(yaml_with(changes))
    assert row.message() in str(error.value)
    prepare_plugins(yaml_with(changes | {"adapter": "qlora"}))


@pytest.mark.refused("Scale-out", "FSDP2, 4-bit base, fp16")
def test_fp16_on_a_4_bit_base_under_fsdp_is_refused_and_each_two_of_them_are_not():
    asked = {"fp16": True, "load_in_4bit": True, "fsdp_config": {"reshard_after_forward": True}}
    with pytest.raises(ValidationError, match="`fp16`: under FSDP a 4-bit base works in bf16"):
        validate_config(yaml_with(asked))
    for left_out in asked:
        validate_config(yaml_with({k: v for k, v in asked.items() if k != left_out}))


@pytest.mark.parametrize("key", ["quantize_moe_experts", "lora_target_parameters"])
def test_who_wants_to_train_a_base_s_own_experts_is_told_what_does(key):
    row = next(row for row in REFUSED if row.key == key)
    wanted = {
        "adapter": "qlora",
        "load_in_4bit": True,
        "lora_target_linear": None,
        "lora_target_modules": ["q_proj"],
        "lora_target_parameters": ["mlp.experts.gate_up_proj"],
        "quantize_moe_experts": True,
    }
    for name in ("adapter: qlora", "lora_target_parameters", "quantize_moe_experts: true"):
        assert f"`{name}`" in row.remedy
    cfg = validate_config(yaml_with(wanted), GPU, {"torch_version": "2.10.0"})
    assert cfg.quantize_moe_experts and cfg.lora_target_parameters


def test_all_offending_options_are_named_at_once():
    with pytest.raises(ValidationError) as error:
        validate_config(
            yaml_with({"peft_use_dora": True, "lora_mlp_kernel": True, "tiled_mlp": True})
        )
    for key in ("peft_use_dora", "lora_mlp_kernel", "tiled_mlp"):
        assert f"- `{key}`: " in str(error.value)


def test_a_plain_configuration_is_accepted():
    assert validate_config(yaml_with({})).adapter == "alphalora"


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_mlp_kernel": False},
        {"peft_init_lora_weights": True},
        {"peft_ensure_weight_tying": False},
        {"nf4_backend": "bitsandbytes"},
        {"qlora_sharded_model_loading": False},
        {"loraplus_lr_embedding": 1e-6},
        {"tensor_parallel_size": 1},
        {"relora": False},
        {"merge_lora": False},
        {"fsdp_config": {"reshard_after_forward": True}},
        {"load_in_4bit": True, "bnb_config_kwargs": {"bnb_4bit_use_double_quant": False}},
        {"load_in_8bit": True},
        {"load_in_4bit": True, "fsdp_config": {"reshard_after_forward": True}},
        {"load_in_8bit": True, "fsdp_config": {"reshard_after_forward": True}},
        {"fsdp_config": {"cpu_ram_efficient_loading": True}},
        {"fp16": True, "fsdp_config": {"reshard_after_forward": True}},
        {"rl": "dpo"},
        {
            "peft_use_rslora": True,
            "peft_layers_to_transform": [0],
            "peft_layers_pattern": ["layers"],
            "peft_autocast_adapter_dtype": False,
            "lora_on_cpu": True,
            "lora_modules_to_save": ["lm_head"],
        },
    ],
    ids=str,
)
def test_what_is_harmless_is_accepted(changes):
    cfg = validate_config(yaml_with(changes))
    for key in changes:
        assert cfg[key] is not None


def test_the_host_does_not_switch_its_kernels_on():
    cfg = validate_config(yaml_with({}), GPU, {"torch_version": "2.10.0"})
    assert not any(cfg[name] for name in KERNELS)
    lora = validate_config(yaml_with({"adapter": "lora"}), GPU, {"torch_version": "2.10.0"})
    assert all(lora[name] for name in KERNELS)


def test_a_second_validation_refuses_no_default_of_the_host():
    first = validate_config(yaml_with({}))
    assert first.mixlora_num_experts == 8
    validate_config(DictDefault(first.to_dict()))


def test_both_tables_name_options_that_exist():
    fields = host_fields()
    for key in chain(HONOURED, (row.key for row in REFUSED)):
        name, *rest = key.split(".")
        owner = OTHER_PLUGINS[name].model_fields if name in OTHER_PLUGINS else fields
        assert name in owner, f"`{key}` is gone from the host's schema"
        for part in rest:
            block = owner[name].annotation.__args__[0]
            assert part in block.model_fields, f"`{key}` is gone from the host's schema"


def test_no_refused_option_is_taken_for_a_misspelling():
    keys = {row.key.partition(".")[0] for row in REFUSED}
    check_spelling(dict.fromkeys(keys, 1), REFUSED_KEYS | KEYS.keys())
    families = ("lora_", "peft", "loraplus_")
    assert {key for key in keys if key.startswith(families)} - KEYS.keys() == REFUSED_KEYS


def test_every_adapter_option_is_decided_once():
    prefixes = ("lora_", "peft_", "loraplus_")
    refused = [row.key for row in REFUSED]
    assert len(refused) == len(set(refused))
    for name in host_fields():
        if name.startswith(prefixes):
            assert name in HONOURED or name in refused, f"decide what `{name}` does"
    for row in REFUSED:
        if row.key in HONOURED:
            alone = {"adapter": "alphalora", row.key: row.example[row.key]}
            other = alone | {"load_in_4bit": row.key == "bnb_config_kwargs"}
            assert row not in refusals.offending(other), "refused only together with another"


@pytest.mark.parametrize("prefix", ["mixlora_", "relora", "lisa_", "merge_"])
def test_families_of_other_methods_are_refused_completely(prefix):
    inert_alone = {"relora_prune_method", "lisa_layers_attribute"}
    names = {name for name in host_fields() if name.startswith(prefix)} - inert_alone
    assert names and names <= {row.key for row in REFUSED}
