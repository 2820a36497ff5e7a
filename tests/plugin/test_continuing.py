"""Continuing an adapter: what the YAML leaves out comes from it, for every setting."""

import json
import shutil
from dataclasses import fields

import pytest
from peft import PeftConfig, get_peft_model
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from axolotl_alphalora.adapter import AlphaLoraConfig, AlphaLoraLayer
from axolotl_alphalora.allocation import AllocationRequest, Plan, build_plan
from axolotl_alphalora.mixture import Mixture
from axolotl_alphalora.planning import AlphaLoraConfigBlock, Targets, plan_request, read_block
from axolotl_alphalora.planning.request import in_yaml
from axolotl_alphalora.plugin.loading import Allocation, adapt, adapter_config
from axolotl_alphalora.plugin.saved import (
    CHANGEABLE,
    KEPT,
    check_against_yaml,
    read_saved,
)
from helpers.models import tiny_llama
from helpers.settings import validate

pytestmark = pytest.mark.usefixtures("plugin")

# Where the experts are and how many: told apart by their names, not one by one.
LAYERS = {
    "num_experts",
    "rank_pattern",
    "plan",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "base_blocks",
}
START = {"init_weights", "init_from", "init_split"}
PEFTS = {field.name for field in fields(PeftConfig)} | {"needs_version"}
LEARNT = {
    "r": 4,
    "lora_alpha": 5,
    "use_rslora": True,
    "modules_to_save": ["lm_head"],
    "top_k": 0.5,
    "segments": 2,
    "router_rank": 3,
    "share_a": True,
    "lora_dropout": 0.25,
    "aux_loss_coef": 0.5,
    "balance_over": "global_batch",
}
"""No setting as it is by default."""
CHANGES = {
    "lora_dropout": 0.0,
    "alphalora.aux_loss_coef": 0.001,
    "alphalora.balance_over": "micro_batch",
}
"""The defaults, written out."""
CONTRADICTIONS = {
    "lora_r": 8,
    "lora_alpha": 8,
    "peft_use_rslora": False,
    "lora_modules_to_save": ["embed_tokens"],
    "alphalora.top_k": 2,
    "alphalora.segments": 1,
    "alphalora.router_rank": 4,
    "alphalora.share_a": False,
}
MIXTURE = ("top_k", "segments", "router_rank", "share_a")
BARE = dict.fromkeys(("lora_r", "lora_alpha", "lora_target_linear"))
DOORS = ("lora_model_dir", "resume_from_checkpoint")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_llama().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, base):
    """The folder of an adapter, and its config."""
    model = LlamaForCausalLM.from_pretrained(base)
    shapes = Targets(modules=["q_proj"]).resolve(model)
    request = AllocationRequest(
        base_model=str(base),
        strategy="counts",
        options={"experts": [2, 3]},
        rank=LEARNT["r"],
        mixture=Mixture(**{key: LEARNT[key] for key in MIXTURE}),
    )
    plan = build_plan(request, shapes)
    (first, *_) = shapes
    config = AlphaLoraConfig(
        num_experts=plan.counts, plan=plan.to_dict(), rank_pattern={first: 6}, **LEARNT
    )
    folder = tmp_path_factory.mktemp("learnt")
    get_peft_model(model, config).save_pretrained(folder)
    return folder, AlphaLoraConfig.from_pretrained(folder)


def yaml_keys(values):
    """Keys of the YAML as changes of a configuration: those of the block in it."""
    block = {k.removeprefix("alphalora."): v for k, v in values.items() if "." in k}
    rest = {k: v for k, v in values.items() if "." not in k}
    return rest | ({"alphalora": block} if block else {})


def continued(base, learnt, door, values=None):
    """The config of the adapted model: by `lora_model_dir`, or on resume as DPO asks for it."""
    cfg = validate(base_model=str(base), **BARE | {door: str(learnt[0])} | yaml_keys(values or {}))
    model = LlamaForCausalLM.from_pretrained(base)
    allocation = Allocation(cfg)
    if door == "lora_model_dir":
        adapted, config = adapt(cfg, allocation, model)
    else:
        config = adapter_config(cfg, allocation, model)
        adapted = get_peft_model(model, config)
    return adapted, config


def test_every_setting_and_every_key_is_decided():
    names = [*KEPT.values(), *CHANGEABLE.values(), *LAYERS, *START, *PEFTS]
    assert sorted(names) == sorted({f.name for f in fields(AlphaLoraConfig)})
    assert set(LEARNT) == {*KEPT.values(), *CHANGEABLE.values()}
    assert (set(CHANGES), set(CONTRADICTIONS)) == (set(CHANGEABLE), set(KEPT))
    ruled = {*AlphaLoraConfigBlock.RULED_BY_PLAN, "plan", *START - {"init_weights"}}
    # The optimizer's, the log's, and what is for new adapters.
    of_the_run = ("router_lr_ratio", "log_blocks_every", "preset")
    ours = {key.removeprefix("alphalora.") for key in (*KEPT, *CHANGEABLE) if "." in key}
    assert sorted([*ruled, *ours, *of_the_run]) == sorted(AlphaLoraConfigBlock.model_fields)


def test_a_preset_is_for_new_adapters(base, learnt, tmp_path):
    """The paper's beta of 2.5, which the YAML does not hold, is no contradiction to another."""
    folder = tmp_path / "by-alphas"
    shutil.copytree(learnt[0], folder)
    path = folder / "adapter_config.json"
    saved = json.loads(path.read_text())
    saved["plan"]["strategy"] |= {"name": "alphalora", "options": {"beta": 3.0}}
    path.write_text(json.dumps(saved))
    values = {"alphalora.preset": "paper", "alphalora.allocation": "alphalora"}
    found = folder, AlphaLoraConfig.from_pretrained(folder)
    _, config = continued(base, found, "lora_model_dir", values)
    for name in {*LEARNT, *LAYERS} - {"target_modules"}:
        assert getattr(config, name) == getattr(found[1], name), name
    values["alphalora.allocation"] = {"strategy": "alphalora", "beta": 2.5}
    with pytest.raises(ValueError, match="beta is 2.5 in the YAML and 3.0 in the adapter"):
        continued(base, found, "lora_model_dir", values)


@pytest.mark.parametrize("door", DOORS)
def test_what_the_yaml_leaves_out_is_the_adapters(base, learnt, door):
    adapted, config = continued(base, learnt, door)
    for name in {*LEARNT, *LAYERS, *START} - {"target_modules"}:
        assert getattr(config, name) == getattr(learnt[1], name), name
    for name, value in LEARNT.items():
        assert getattr(config, name) == value, name
    layers = [module for module in adapted.modules() if isinstance(module, AlphaLoraLayer)]
    assert [layer.num_experts["default"] for layer in layers] == [2 * 2, 3 * 2]
    assert [layer.r["default"] for layer in layers] == [6 // 2, 4 // 2]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("key", CHANGES)
def test_how_it_learns_the_yaml_may_say_even_with_a_default(base, learnt, door, key):
    _, config = continued(base, learnt, door, {key: CHANGES[key]})
    assert getattr(config, CHANGEABLE[key]) == CHANGES[key] != LEARNT[CHANGEABLE[key]]
    for other in set(LEARNT) - {CHANGEABLE[key]}:
        assert getattr(config, other) == LEARNT[other], other


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("key", CONTRADICTIONS)
def test_what_it_computes_the_yaml_cannot_change(base, learnt, door, key):
    value, found = CONTRADICTIONS[key], LEARNT[KEPT[key]]
    changes = BARE | {door: str(learnt[0])} | yaml_keys({key: value})
    with pytest.raises(ValueError, match=f"contradicts the adapter in {door}") as error:
        Allocation(validate(base_model=str(base), **changes))
    said = f"{key} is {in_yaml(value)} in the YAML and {in_yaml(found)} in the adapter"
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("asked", "same"),
    [(["score"], True), ([], True), (["classifier"], True), (["score", "embed_tokens"], False)],
    ids=str,
)
def test_heads_that_peft_adds_for_a_task_contradict_nothing(base, tmp_path, asked, same):
    config = AlphaLoraConfig(
        num_experts=5,
        target_modules=["q_proj"],
        modules_to_save=["score"],
        task_type="SEQ_CLS",
        r=4,
        lora_alpha=8,
    )
    model = LlamaForSequenceClassification.from_pretrained(base, num_labels=1)
    get_peft_model(model, config).save_pretrained(tmp_path / "out")
    changes = {"lora_target_modules": ["q_proj"], "lora_modules_to_save": asked}
    cfg = validate(base_model=str(base), **BARE | changes | {"lora_r": 4, "lora_alpha": 8})
    saved = read_saved("lora_model_dir", str(tmp_path / "out"))
    assert set(saved["modules_to_save"]) == {"score", "classifier"}
    block = read_block(cfg)
    given = cfg, block, plan_request(cfg, block), "lora_model_dir", "out", saved
    if same:
        check_against_yaml(*given)
    else:
        with pytest.raises(ValueError, match="lora_modules_to_save is .*embed_tokens"):
            check_against_yaml(*given)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lora_target_modules": ["k_proj"]}, "target module model.layers.0.self_attn.k_proj"),
        ({"alphalora.allocation": "uniform"}, "alphalora.allocation.strategy is uniform"),
        ({"alphalora.total_experts": 9}, "the YAML's budget is total_experts 9"),
        ({"alphalora.spend": "rank"}, "alphalora.spend is rank"),
    ],
    ids=str,
)
def test_where_experts_are_the_yaml_cannot_change(base, learnt, values, said):
    changes = BARE | {"lora_model_dir": str(learnt[0])} | yaml_keys(values)
    with pytest.raises(ValueError) as error:
        Allocation(validate(base_model=str(base), **changes))
    assert said in str(error.value)


def test_an_adapter_of_an_older_release_has_whole_experts(base, tmp_path):
    model = LlamaForCausalLM.from_pretrained(base)
    config = AlphaLoraConfig(num_experts=3, target_modules=["q_proj"], r=4, lora_alpha=8, top_k=1)
    get_peft_model(model, config).save_pretrained(tmp_path / "old")
    path = tmp_path / "old" / "adapter_config.json"
    saved = json.loads(path.read_text())
    for key in ("segments", "router_rank", "share_a"):
        del saved[key]
    path.write_text(json.dumps(saved))
    _, found = continued(base, (tmp_path / "old",), "lora_model_dir")
    assert found.mixture == Mixture(top_k=1)
    shape = {"alphalora": {"segments": 2, "router_rank": 3, "share_a": True}}
    changes = BARE | {"lora_model_dir": str(tmp_path / "old")} | shape
    with pytest.raises(ValueError) as error:
        Allocation(validate(base_model=str(base), **changes))
    for said in ("segments is 2 in the YAML and 1", "router_rank is 3 in the YAML and null"):
        assert f"alphalora.{said} in the adapter" in str(error.value)
    assert "alphalora.share_a is true in the YAML and false in the adapter" in str(error.value)


def test_a_plan_of_another_shape_contradicts_the_adapter(base, learnt, tmp_path):
    plan = Plan.from_dict(learnt[1].plan)
    plan.model_copy(update={"share_a": False, "segments": 1}).save(tmp_path / "plan.json")
    values = {"alphalora.plan": str(tmp_path / "plan.json")}
    changes = BARE | {"lora_model_dir": str(learnt[0])} | yaml_keys(values)
    with pytest.raises(ValueError) as error:
        Allocation(validate(base_model=str(base), **changes))
    assert "plan.json: segments is 1 in the plan and 2 in the adapter" in str(error.value)
    assert "plan.json: share_a is false in the plan and true in the adapter" in str(error.value)
