"""`--as-lora`: a plan as a plain LoRA, read by the host and by PEFT."""

import json
import re

import pytest
import torch
import yaml
from axolotl.loaders.adapter import _build_peft_lora_config
from axolotl.utils.config import validate_config
from axolotl.utils.dict import DictDefault
from peft import get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from axolotl_alphalora.allocation import Plan
from axolotl_alphalora.planning.as_lora import lora_keys
from helpers.allocating import plan as planned
from helpers.settings import NAME, base_yaml

ALLOCATIONS = {
    "blocks": {"allocation": {"strategy": "mola", "shape": [1, 2, 0, 3]}, "min_experts": 0},
    "modules": {"allocation": {"strategy": "alphalora", "granularity": "module"}},
    "patterns": {"allocation": {"strategy": "counts", "experts": {"q_proj": 0, ".*": 2}}},
    "rank": {"allocation": "mola:1234", "spend": "rank"},
    "shape": {
        "allocation": "mola:1234",
        "top_k": 0.5,
        "segments": 2,
        "router_rank": 3,
        "share_a": True,
    },
}


@pytest.fixture
def made(tmp_path, model, run):
    def make(**changes):
        path = tmp_path / "config.yml"
        settings = base_yaml(**{"base_model": str(model), **changes})
        path.write_text(yaml.safe_dump(settings, sort_keys=False))
        plan = run("plan", path, "--json")
        lora = run("plan", path, "--as-lora")
        assert lora.exit_code == 0, lora.output
        return Plan.from_dict(json.loads(plan.stdout)), lora.stdout

    return make


def adapted_ranks(model, keys):
    """Rank of every matrix that PEFT adapts, with the config that the host builds."""
    base = AutoModelForCausalLM.from_pretrained(model)
    cfg = validate_config(DictDefault(keys))
    adapted = get_peft_model(base, _build_peft_lora_config(base, cfg))
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A")
    }
    for layer in layers.values():
        assert layer.scaling["default"] == cfg.lora_alpha / layer.r["default"]
    return {name: layer.r["default"] for name, layer in layers.items()}, adapted


@pytest.mark.filterwarnings("error:.*did not match any targeted module")
@pytest.mark.parametrize("block", ALLOCATIONS.values(), ids=list(ALLOCATIONS))
@pytest.mark.parametrize(
    "targets",
    [
        {"lora_target_linear": True},
        {"lora_target_linear": None, "lora_target_modules": ["q_proj", "mlp.up_proj"]},
        {"lora_target_linear": None, "lora_target_modules": r".*\.\d\.(self_attn\.q|mlp\.up)_proj"},
        {"lora_exclude_modules": ["down_proj"]},
        {"peft_layers_to_transform": [0, 1, 2, 3], "lora_target_modules": ["q_proj", "v_proj"]},
    ],
    ids=["linear", "names", "regex", "excluded", "layers"],
)
def test_peft_gives_every_matrix_the_planned_rank(made, model, block, targets):
    plan, text = made(alphalora=block, **targets)
    keys = yaml.safe_load(text)
    ranks, adapted = adapted_ranks(model, keys)
    assert ranks == {name: number * plan.rank for name, number in plan.numbers.items() if number}
    assert keys["lora_r"] == plan.rank
    trainable, _ = adapted.get_nb_trainable_parameters()
    assert f"# Trainable: {trainable:,} parameters; the plan has " in text
    routers = re.search("its routers are ([0-9,]+)", text)
    if routers and not plan.share_a:
        assert plan.trainable_parameters == trainable + int(routers[1].replace(",", ""))
    assert ("share one A of rank 4" in text) == plan.share_a
    if block is ALLOCATIONS["rank"]:
        assert trainable == plan.trainable_parameters and "no router" in text


@pytest.mark.parametrize("block", ALLOCATIONS.values(), ids=list(ALLOCATIONS))
def test_the_host_accepts_it_and_nothing_of_ours_is_left(made, block):
    plan, text = made(alphalora=block)
    keys = yaml.safe_load(text)
    assert keys["adapter"] == "lora"
    assert not {"alphalora", "plugins", "lora_exclude_modules"} & keys.keys()
    before = base_yaml(base_model=keys["base_model"])
    kept = before.keys() - {"plugins", "adapter", "alphalora", "lora_target_linear"}
    assert {key: keys[key] for key in kept} == {key: before[key] for key in kept}
    valid = validate_config(DictDefault(keys))
    assert valid.lora_rank_pattern == keys.get("lora_rank_pattern")
    assert valid.lora_r == plan.rank


def test_a_block_has_one_key_where_its_matrices_share_a_rank(made):
    _, text = made(alphalora={"allocation": "mola:1234"})
    assert yaml.safe_load(text)["lora_rank_pattern"] == {
        rf"^model\.layers\.{i}\..*": 4 * (i + 1) for i in (1, 2, 3)
    }


def test_keys_of_block_1_do_not_reach_block_11_nor_another_stack():
    from peft.utils.other import get_pattern_key

    plan = hand_made({"m.1.a": 2, "m.1.b": 2, "m.11.a": 3, "m.11.b": 1, "vision.m.1.a": 1})
    pattern = lora_keys(plan, {"lora_target_linear": True})["lora_rank_pattern"]
    found = {name: pattern.get(get_pattern_key(list(pattern), name), 4) for name in plan.numbers}
    assert found == {name: 4 * number for name, number in plan.numbers.items()}


def hand_made(numbers):
    counts = {"experts": {f"(?<!.){re.escape(name)}": n for name, n in numbers.items()}}
    shapes = dict.fromkeys(numbers, (8, 8))
    return planned("counts", shapes, options=counts, rank=4)


def test_4bit_becomes_qlora_and_other_plugins_stay(made):
    other = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
    _, text = made(plugins=[NAME, other], load_in_4bit=True)
    keys = yaml.safe_load(text)
    assert (keys["adapter"], keys["plugins"]) == ("qlora", [other])


def test_what_differs_is_said(made, tmp_path, model, run):
    _, text = made(output_dir="./out", peft_use_rslora=True)
    assert "# output_dir is still ./out: name another one." in text
    assert "sqrt(N)" in text
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(base_yaml(base_model=str(model), lora_model_dir="adapter")))
    result = run("plan", path, "--as-lora")
    assert result.exit_code == 1 and "`lora_model_dir` names an AlphaLoRA adapter" in result.output


def test_a_regex_beside_all_linear_layers_becomes_names(made, model):
    # The host would take it for a name.
    targets = {"lora_target_linear": True, "lora_target_modules": r".*\.0\.mlp\.up_proj"}
    plan, text = made(**targets)
    ranks, _ = adapted_ranks(model, yaml.safe_load(text))
    assert ranks.keys() == plan.numbers.keys()


def test_a_bare_model_gets_the_keys_alone_and_a_file_is_written_whole(tmp_path, model, run):
    path = tmp_path / "new" / "lora.yml"
    result = run("plan", model, "--strategy", "mola:1234", "--as-lora", "--output", path)
    assert result.exit_code == 0 and result.stdout == ""
    keys = yaml.safe_load(path.read_text())
    assert list(keys) == ["lora_r", "lora_target_modules", "lora_rank_pattern"]
    assert len(keys["lora_target_modules"]) == 4 * 7


def test_all_linear_layers_are_those_of_the_plan_where_the_host_finds_none(made, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("model") / "gpt2")
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=97)).save_pretrained(
        folder
    )
    plan, text = made(base_model=folder, alphalora={"allocation": "mola:12"})
    keys = yaml.safe_load(text)
    assert "lora_target_linear" not in keys
    ranks, _ = adapted_ranks(folder, keys)
    assert ranks == {name: number * plan.rank for name, number in plan.numbers.items()}
    assert len(ranks) == 2 * 4
