"""The place of the `alphalora:` block in the host."""

import json

import pytest
import yaml
from axolotl.utils.config import validate_config
from axolotl.utils.dict import DictDefault
from pydantic import ValidationError

from axolotl_alphalora.planning.config import AlphaLoraConfigBlock
from axolotl_alphalora.plugin import args
from helpers.settings import validate

pytestmark = pytest.mark.usefixtures("plugin")


def test_the_host_takes_over_the_block():
    cfg = validate(alphalora={"experts_per_block": 3, "top_k": 1})
    assert cfg.alphalora.experts_per_block == 3
    assert cfg.alphalora.top_k == 1
    assert cfg.alphalora.allocation == {"strategy": "alphalora"}


@pytest.mark.parametrize("changes", [{}, {"alphalora": None}, {"alphalora": {}}])
def test_without_options_the_defaults_apply(changes):
    defaults = AlphaLoraConfigBlock().model_dump(exclude_none=True)
    assert validate(**changes).alphalora == defaults


@pytest.mark.parametrize("block", [{"plan": "plan.json"}, {"total_experts": 10}, {}])
def test_a_validated_configuration_validates_again(block):
    # Ray workers validate the dump of a validated configuration.
    first = validate(alphalora=block, load_in_4bit=True)
    second = validate_config(DictDefault(first.to_dict()))
    assert second.alphalora == first.alphalora
    assert second.overrides_of_model_kwargs == first.overrides_of_model_kwargs


def test_the_validated_configuration_is_plain_data():
    cfg = validate(alphalora={"total_experts": 8}, load_in_4bit=True).to_dict()
    for key in ("alphalora", "overrides_of_model_kwargs"):
        assert json.loads(json.dumps(cfg[key])) == yaml.safe_load(yaml.safe_dump(cfg[key]))


def test_the_block_needs_the_adapter():
    with pytest.raises(ValidationError, match="`alphalora:` block needs `adapter: alphalora`"):
        validate(adapter="lora", alphalora={"top_k": 2})


def test_other_adapters_are_left_alone():
    cfg = validate(adapter="lora", lora_mlp_kernel=True, peft_use_dora=True, lora_r=None)
    assert cfg.alphalora is None
    assert cfg.overrides_of_model_kwargs is None


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"lora_rank": 8}, ["`lora_rank`", "not an option of Axolotl"]),
        ({"lora_target_module": ["q_proj"]}, ["Did you mean `lora_target_modules`"]),
        ({"peft_use_rslorra": True}, ["Did you mean `peft_use_rslora`"]),
        ({"alpha_lora": {"top_k": 1}}, ["`alpha_lora`", "Did you mean `alphalora`"]),
        ({"top_k": 1}, ["`top_k` belongs into the `alphalora:` block", "`alphalora.top_k`"]),
        ({"lora_r": None}, ["needs `lora_r`"]),
        ({"lora_alpha": None}, ["needs `lora_alpha`"]),
        ({"lora_r": -1}, ["`lora_r: -1`", "at least 1"]),
        ({"lora_dropout": 1.0}, ["`lora_dropout: 1.0`", "below 1"]),
        ({"lora_target_linear": None}, ["lora_target_linear: true", "lora_target_modules"]),
        ({"alphalora": 5}, ["`alphalora:` must be a block of options"]),
        ({"alphalora": {"memory_mib": 50}, "optimizer": "galore_adamw"}, ["galore_adamw"]),
        (
            {"alphalora": {"memory_mib": 50}, "peft_autocast_adapter_dtype": False},
            ["alphalora.memory_mib", "`peft_autocast_adapter_dtype: false`"],
        ),
        (
            {"alphalora": {"memory_mib": 50}, "optim_args": {"momentum": 0.9}},
            ["alphalora.memory_mib", "`optim_args`", "alphalora.total_parameters"],
        ),
        ({"alphalora": {"allocation": "sensitivity"}, "rl": "dpo"}, ["`rl`", "alphalora.plan"]),
        ({"alphalora": {"allocation": "eva"}, "rl": "dpo"}, ["`rl`", "alphalora.plan"]),
        (
            {
                "alphalora": {"allocation": "sensitivity"},
                "fsdp_config": {"fsdp_version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"},
            },
            ["`fsdp_config` shards", "alphalora.plan: plan.json"],
        ),
        (
            {
                "alphalora": {"allocation": "eva"},
                "deepspeed": {"zero_optimization": {"stage": 3}},
            },
            ["goes by activations", "`deepspeed` shards", "alphalora.plan: plan.json"],
        ),
        (
            {"alphalora": {"router_lr_ratio": 0.1}, "lr_scheduler": "one_cycle"},
            ["do nothing where `lr_scheduler: one_cycle`"],
        ),
        (
            {"loraplus_lr_ratio": 4, "deepspeed": {"scheduler": {"type": "WarmupLR"}}},
            ["DeepSpeed configuration names the scheduler", "`lr_scheduler`"],
        ),
        (
            {"alphalora": {"memory_mib": 50}, "lora_modules_to_save": ["embed_tokens"]},
            ["alphalora.memory_mib", "`lora_modules_to_save`"],
        ),
        ({"alphalora": {"topk": 5}}, ["`alphalora.topk`", "Did you mean `alphalora.top_k`"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_host_reports_what_would_be_dropped(changes, parts):
    with pytest.raises(ValidationError) as error:
        validate(**changes)
    for part in parts:
        assert part in str(error.value)


def test_a_saved_adapter_brings_its_own_shape():
    cfg = validate(lora_model_dir="./out", lora_r=None, lora_alpha=None, lora_target_linear=None)
    assert cfg.lora_model_dir == "./out"


def test_excluded_modules_reach_the_loader():
    assert validate(lora_exclude_modules=["lm_head"]).lora_exclude_modules == ["lm_head"]


@pytest.mark.refused("Verbs", "`evaluate` on the run of DPO, IPO or KTO")
@pytest.mark.parametrize("rl", ["dpo", "kto"])
def test_an_evaluation_that_would_be_of_a_fresh_adapter_is_refused(tmp_path, monkeypatch, rl):
    monkeypatch.setattr(args, "running_verb", lambda: "evaluate")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValidationError, match="would not evaluate the adapter in .*`eval_loss`"):
        validate(rl=rl, output_dir=str(tmp_path))
