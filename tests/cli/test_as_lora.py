"""`--as-lora`: a plan as a plain LoRA, read by the host and by PEFT."""

import json
import math
import re

import pytest
import torch
import yaml
from axolotl.loaders.adapter import _build_peft_lora_config
from axolotl.utils.config import validate_config
from axolotl.utils.dict import DictDefault
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from axolotl_alphalora.allocation import Plan
from axolotl_alphalora.hosts.constants import LORA_KERNELS
from axolotl_alphalora.planning import Source, as_lora
from axolotl_alphalora.planning.as_lora import lora_config, lora_keys
from helpers.allocating import plan as planned
from helpers.deep import BASES
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


@pytest.mark.parametrize("gpu", [True, False])
def test_the_hosts_kernels_are_off_where_there_is_no_gpu_for_them(made, monkeypatch, gpu):
    monkeypatch.setattr(as_lora, "_has_gpu", lambda: gpu)
    _, text = made(lora_o_kernel=False)
    keys = yaml.safe_load(text)
    found = {key: keys.get(key) for key in LORA_KERNELS}
    assert found == dict.fromkeys(LORA_KERNELS, None if gpu else False) | {"lora_o_kernel": False}
    assert ("need a GPU" in text) == (not gpu)


def test_a_scale_that_the_yaml_leaves_out_is_named(made):
    for alpha, said in ((None, True), (8, False)):
        assert ("# To be completed: lora_alpha." in made(lora_alpha=alpha)[1]) == said


@pytest.mark.usefixtures("combinations")
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
    plan, text = made(alphalora=block)
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


def in_files(run, tmp_path, source, *options):
    """What the three formats come to: YAML keys, PEFT's config from JSON, and from Python."""
    files = [tmp_path / "written" / name for name in ("lora.yml", "adapter_config.json", "l.py")]
    for file in files:
        done = run("plan", source, *options, "--as-lora", "--output", file)
        assert done.exit_code == 0, done.output
        assert done.stdout == "" and f"Saved to {file}" in done.stderr
    keys = yaml.safe_load(files[0].read_text())
    names: dict = {}
    exec(compile(files[2].read_text(), "l.py", "exec"), names)
    loaded = LoraConfig.from_pretrained(str(files[1].parent))
    given = LoraConfig(**json.loads(files[1].read_text()))
    assert loaded.to_dict() == given.to_dict() == names["config"].to_dict()
    return keys, [loaded, names["config"]]


def ranks_and_scales(base, config):
    model = get_peft_model(base, config)
    return {
        name.removeprefix("base_model.model."): (layer.r["default"], layer.scaling["default"])
        for name, layer in model.named_modules()
        if hasattr(layer, "lora_A")
    }


def gpt2(folder):
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=97)).save_pretrained(
        folder
    )


def mixture(name, folder):
    torch.manual_seed(0)
    family, config = BASES[name]
    family(config(num_hidden_layers=2)).save_pretrained(folder)


@pytest.mark.usefixtures("combinations")
@pytest.mark.works("Plans", "`--as-lora`: Axolotl's YAML, PEFT's `LoraConfig` as JSON and Python")
@pytest.mark.parametrize("spend", ["experts", "rank"])
@pytest.mark.parametrize("rslora", [False, True], ids=["lora", "rslora"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2-moe"])
def test_every_layer_has_the_planned_rank_and_the_experts_scale(
    tmp_path, model, run, family, rslora, spend
):
    folder = model if family == "llama" else tmp_path / family
    if family == "gpt2":
        gpt2(folder)
    if family == "qwen2-moe":
        mixture(family, folder)
    blocks = AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers
    counts = {r".*\.0\..*": 1, r".*\.1\.(attn\.c_proj|.*q_proj)": 0, ".*": 3}
    block = {"allocation": {"strategy": "counts", "experts": counts}, "spend": spend}
    path = tmp_path / "config.yml"
    settings = base_yaml(base_model=str(folder), alphalora=block)
    settings |= {"peft_use_rslora": rslora, "lora_dropout": 0.25}
    settings |= {"lora_modules_to_save": ["lm_head"]}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    planned = run("plan", path, "--json")
    assert planned.exit_code == 0, planned.output
    plan = Plan.from_dict(json.loads(planned.stdout))
    assert set(plan.numbers.values()) == {0, 1, 3} and blocks > 1
    keys, configs = in_files(run, tmp_path, path)
    alpha, rank = keys["lora_alpha"], plan.rank

    def scale(number):
        if not rslora:
            return alpha / (rank * number)
        return (
            alpha
            / math.sqrt(rank * number if spend == "rank" else rank)
            / (1 if spend == "rank" else number)
        )

    wanted = {name: (rank * n, scale(n)) for name, n in plan.numbers.items() if n}
    for config in configs:
        found = ranks_and_scales(AutoModelForCausalLM.from_pretrained(folder), config)
        assert found.keys() == wanted.keys()
        assert {name: r for name, (r, _) in found.items()} == {n: r for n, (r, _) in wanted.items()}
        assert [found[name][1] for name in wanted] == pytest.approx([s for _, s in wanted.values()])
        assert (config.lora_dropout, config.modules_to_save) == (0.25, ["lm_head"])
        assert config.task_type == "CAUSAL_LM" and config.use_rslora is rslora
    valid = validate_config(DictDefault(keys))
    base = AutoModelForCausalLM.from_pretrained(folder)
    host = ranks_and_scales(base, _build_peft_lora_config(base, valid))
    assert {name: r for name, (r, _) in host.items()} == {n: r for n, (r, _) in wanted.items()}


@pytest.mark.refused("Plans", "`--as-lora` where PEFT takes targets for stacked experts")
@pytest.mark.parametrize("output", [[], ["--json"]], ids=["yaml", "json"])
def test_layers_that_peft_would_take_for_others_are_refused(tmp_path, run, output):
    mixture("deepseek-v3", tmp_path / "model")
    result = run("plan", tmp_path / "model", "--strategy", "uniform", "--as-lora", *output)
    assert result.exit_code == 1 and result.stdout == ""
    assert "PEFT" in result.output and "leave these layers out with `lora_exclu" in result.output


def test_json_goes_to_stdout_and_what_it_is_to_stderr(tmp_path, model, run):
    result = run("plan", model, "--strategy", "mola:1234", "--as-lora", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert "lora_alpha" not in found and "alpha_pattern" not in found
    assert "A plain LoRA with the capacity of the plan by mola" in result.stderr
    assert "Not said, so PEFT's defaults: task_type, lora_alpha (8)" in result.stderr
    config = LoraConfig(**found)
    ranks = ranks_and_scales(AutoModelForCausalLM.from_pretrained(model), config)
    assert {name: r for name, (r, _) in ranks.items()} == {
        name: 8 * (1 + int(name.split(".")[2])) for name in ranks
    }
    assert len(ranks) == 4 * 7


def test_each_key_of_a_pattern_is_one_module_s():
    from peft.utils.other import get_pattern_key

    numbers = {"m.1.a": 2, "m.1.b": 2, "m.11.a": 3, "m.1.ab": 4, "vision.m.1.a": 1, "m.1.a.c": 2}
    plan = hand_made(numbers)
    source = Source(None, None, {"lora_alpha": 8, "peft_use_rslora": True}, None)
    config = lora_config(source, plan)
    for pattern in (config["rank_pattern"], config["alpha_pattern"]):
        for key in pattern:
            assert len([name for name in numbers if get_pattern_key([key], name) == key]) == 1
        assert len(pattern) == sum(number > 1 for number in numbers.values())
    unsaid = lora_config(Source(None, None, {"peft_use_rslora": True}, None), plan)
    assert unsaid["alpha_pattern"] == config["alpha_pattern"], "by PEFT's own lora_alpha, 8"


def test_4bit_becomes_qlora_and_other_plugins_stay(made):
    other = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
    _, text = made(plugins=[NAME, other], load_in_4bit=True)
    keys = yaml.safe_load(text)
    assert (keys["adapter"], keys["plugins"]) == ("qlora", [other])


def test_what_differs_is_said(made, tmp_path, model, run):
    _, text = made(output_dir="./out/", peft_use_rslora=True, hub_model_id="me/mine")
    assert yaml.safe_load(text)["output_dir"] == "./out-lora", "what the YAML's run wrote stays"
    assert "# hub_model_id is still me/mine: name another one." in text
    assert yaml.safe_load(made(output_dir=None)[1])["output_dir"] == "./model-out-lora"
    assert "sqrt(N)" in text
    path = tmp_path / "config.yml"
    (tmp_path / "adapter_config.json").write_text("{}")
    for key in ("lora_model_dir", "resume_from_checkpoint"):
        path.write_text(yaml.safe_dump(base_yaml(base_model=str(model), **{key: str(tmp_path)})))
        result = run("plan", path, "--as-lora")
        assert result.exit_code == 1 and f"`{key}` names an AlphaLoRA adapter" in result.output
    _, text = made(alphalora={"allocation": "uniform", "init_from": str(tmp_path)})
    assert f"start from the LoRA in {tmp_path} (alphalora.init_from); this LoRA starts" in text


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
    gpt2(folder)
    plan, text = made(base_model=folder, alphalora={"allocation": "mola:12"})
    keys = yaml.safe_load(text)
    assert "lora_target_linear" not in keys
    ranks, _ = adapted_ranks(folder, keys)
    assert ranks == {name: number * plan.rank for name, number in plan.numbers.items()}
    assert len(ranks) == 2 * 4
