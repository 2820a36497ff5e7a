"""Mistakes in a YAML are refused, or warned of, before data and model are loaded.

Each through the host's own validation and, where that reads the key, through `alphalora plan`.
"""

import pytest
import yaml
from axolotl.integrations.base import AdapterCapabilities, load_plugin
from axolotl.utils.config import validate_config
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.config import AxolotlInputConfig
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from transformers import LlamaForCausalLM

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.allocation import registry
from axolotl_alphalora.cli import alphalora
from axolotl_alphalora.planning import AlphaLoraConfigBlock
from axolotl_alphalora.planning.keys import KEYS, PLUGIN, REFUSED_KEYS, check_spelling
from axolotl_alphalora.plugin.options import HONOURED
from helpers import settings
from helpers.settings import base_yaml, plan, validate

WRONG = {
    "base_model": [7, ["a"]],
    "revision_of_model": [2, ""],
    "trust_remote_code": ["sometimes", 2],
    "overrides_of_model_config": ["rope_theta", [1]],
    "load_in_4bit": ["nf4", 4],
    "load_in_8bit": ["int8", 8],
    "bnb_config_kwargs": ["nf4", True],
    "embeddings_skip_upcast": ["maybe"],
    "lora_r": [0, -8, "4k", 2.5, True, [8], float("nan")],
    "lora_alpha": [0, -8, "16x", 2.5, True, float("inf")],
    "lora_dropout": [1, -0.1, 5, "5%", True, float("nan")],
    "lora_target_modules": [5, [5], "", [""], {"q_proj": 1}],
    "lora_target_linear": ["all", 2],
    "lora_exclude_modules": [5, [5], ""],
    "lora_modules_to_save": ["lm_head", [1]],
    "lora_model_dir": [3, ["out"]],
    "lora_on_cpu": ["often"],
    "peft_layers_to_transform": [1, "0-3", [-1], ["a"], [1.5]],
    "peft_layers_pattern": ["layers", [0]],
    "peft_use_rslora": ["very"],
    "peft_autocast_adapter_dtype": ["fp32"],
    "loraplus_lr_ratio": [0, -16, "x", True, float("nan")],
}
WRONG_IN_BLOCK = {
    "preset": ["papers", 1, True],
    "allocation": [5, "", "uniforme", {"shape": 1}, {"strategy": "alphalora", "beta": "x"}],
    "experts_per_block": [0, -1, "five", True, [1, 2], float("nan")],
    "total_experts": [0, -1, 2.5, "all", True],
    "total_parameters": [0, -1, "1M", True],
    "memory_mib": [0, -1, "1GiB", True, float("inf")],
    "min_experts": [-1, 1.5, "one", True],
    "max_experts": [0, -1, 1.5, "ten", True],
    "spend": ["ranks", 1, True],
    "top_k": [0, -1, 1.0, 1.5, "two", True, float("nan")],
    "segments": [0, -1, 2.0, "four", True],
    "router_rank": [0, -1, 1.5, "full", True],
    "share_a": [1, "often"],
    "aux_loss_coef": [-1, "small", True, float("nan")],
    "balance_over": ["batch", 1],
    "router_lr_ratio": [0, -1, "x", True, float("nan")],
    "log_blocks_every": [-1, 1.5, "never", True],
    "init_from": ["", 5, ["a"]],
    "init_split": ["qr", 1],
    "plan": ["", 5, ["a"]],
}


@pytest.fixture(autouse=True)
def plugin(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return settings.register(monkeypatch)


def said_by_host(**changes) -> str:
    with pytest.raises(ValidationError) as error:
        validate(**changes)
    return str(error.value)


def named(wrong):
    return [
        pytest.param(key, value, id=f"{key}-{value}")
        for key, values in wrong.items()
        for value in values
    ]


def test_every_key_that_is_read_is_tried():
    assert set(HONOURED) <= set(KEYS) == set(WRONG)
    assert set(AlphaLoraConfigBlock.model_fields) == set(WRONG_IN_BLOCK)


@pytest.mark.parametrize(("key", "value"), named(WRONG))
def test_a_wrong_value_is_refused_with_key_value_and_remedy(tmp_path, key, value):
    shown = str(value).lower() if isinstance(value, bool) else value
    wanted = f"`{key}: {shown}` must be {KEYS[key].words}, for example `{key}: {KEYS[key].example}`"
    assert wanted in said_by_host(**{key: value})
    said = plan(tmp_path, **{key: value})
    assert said.startswith("exit 1: ") and wanted in said and "config.yml" in said


@pytest.mark.parametrize(("key", "value"), named(WRONG_IN_BLOCK))
def test_a_wrong_value_in_the_block_names_its_key(tmp_path, key, value):
    said = said_by_host(alphalora={key: value})
    assert f"alphalora.{key}" in said
    said = plan(tmp_path, alphalora={key: value})
    assert said.startswith("exit 1: ") and f"`alphalora.{key}`" in said


def test_all_wrong_values_are_named_at_once(tmp_path):
    said = said_by_host(lora_r=0, lora_alpha=-8, peft_use_rslora="x")
    for key in ("`lora_r: 0`", "`lora_alpha: -8`", "`peft_use_rslora: x`"):
        assert key in said


def test_values_mean_the_same_to_the_plan_and_to_the_run(tmp_path, model):
    texts = {"lora_r": "8", "lora_target_linear": "false", "lora_target_modules": ["q_proj"]}
    cfg = validate(base_model=str(model), **texts)
    assert (cfg.lora_r, cfg.lora_target_linear) == (8, False)
    said = plan(tmp_path, base_model=str(model), **texts, alphalora={"allocation": "uniform"})
    assert "rank 8" in said and "10,880" in said  # two matrices of 64 x 64, five experts each


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("lora_rank", "lora_r"),
        ("lora-dropout", "lora_dropout"),
        ("loraDropout", "lora_dropout"),
        ("lora_exclude_module", "lora_exclude_modules"),
        ("exclude_modules", "lora_exclude_modules"),
        ("target_modules", "lora_target_modules"),
        ("modules_to_save", "lora_modules_to_save"),
        ("peft_use_rslorra", "peft_use_rslora"),
        ("use_rslora", "peft_use_rslora"),
        ("layers_to_transform", "peft_layers_to_transform"),
        ("lorapluslrratio", "loraplus_lr_ratio"),
        ("load_in_4bits", "load_in_4bit"),
        ("loadin_4bit", "load_in_4bit"),
        ("trust_remote_codes", "trust_remote_code"),
        ("revision_of_models", "revision_of_model"),
        ("base_modle", "base_model"),
        ("embedding_skip_upcast", "embeddings_skip_upcast"),
        ("Alphalora", "alphalora"),
        ("alpha_lora", "alphalora"),
    ],
)
def test_a_misspelt_key_names_the_right_one(tmp_path, key, near):
    for said in (said_by_host(**{key: [1]}), plan(tmp_path, **{key: [1]})):
        assert f"`{key}` is not an option" in said and f"Did you mean `{near}`?" in said


def test_no_key_of_the_host_is_taken_for_a_misspelling():
    check_spelling(dict.fromkeys(AxolotlInputConfig.model_fields, 1), REFUSED_KEYS | KEYS.keys())


@pytest.mark.parametrize("key", AlphaLoraConfigBlock.model_fields)
def test_a_key_of_the_block_outside_of_it_is_refused(tmp_path, key):
    for said in (said_by_host(**{key: 1}), plan(tmp_path, **{key: 1})):
        assert f"`{key}` belongs into the `alphalora:` block" in said


@pytest.mark.parametrize("key", AlphaLoraConfigBlock.model_fields)
def test_a_key_of_the_block_left_blank_means_the_default(key):
    assert validate(alphalora={key: None}).alphalora == validate().alphalora
    assert validate(alphalora={key: None}).alphalora_given == []


@pytest.mark.parametrize("name", registry().names())
def test_an_option_of_an_allocation_left_blank_means_the_default(name):
    options = registry().get(name).strategy.options.model_fields
    blank = {"strategy": name, **dict.fromkeys(options)}
    assert AlphaLoraConfigBlock(allocation=blank) == AlphaLoraConfigBlock(allocation=name)


@pytest.mark.parametrize("key", [key for key in KEYS if key != "base_model"])
def test_a_key_of_the_host_left_blank_means_nothing_was_said(key):
    needed = {"lora_target_modules": ["q_proj"]} if key == "lora_target_linear" else {}
    if key in ("lora_r", "lora_alpha"):
        assert f"needs `{key}`" in said_by_host(**{key: None})
    else:
        assert validate(**needed, **{key: None}).alphalora_given == []


@pytest.mark.parametrize(
    "name", ["AlphaLoRA", "ALPHALORA", "alpha_lora", "alpha-lora", "alphlora", "alphaloras"]
)
def test_a_misspelt_adapter_names_the_right_one(tmp_path, name):
    for said in (said_by_host(adapter=name), plan(tmp_path, adapter=name)):
        assert f"`adapter: {name}`" in said and "Did you mean `adapter: alphalora`?" in said


def test_adapters_of_other_plugins_may_resemble_ours(monkeypatch):
    other = type(settings.AlphaLoraPlugin())
    twin = AdapterCapabilities(name="alphaloras", lora_like=True)
    monkeypatch.setattr(other, "get_adapter_capabilities", lambda self: [twin])
    assert validate(adapter="alphaloras").adapter == "alphaloras"


@pytest.mark.parametrize(
    ("name", "by_host"),
    [
        ("axolotl_alphalora.AlphaLoRAPlugin", True),
        ("axolotl_alphalora.Plugin", True),
        ("axolotl_alphalora:AlphaLoraPlugins", True),
        ("axolotl_alphalora.plugin.AlphaLoraPlugin", True),
        # The host looks for the module before ours is imported.
        ("axolotl-alphalora.AlphaLoraPlugin", False),
        ("axolotl_alphalora", False),
        ("AlphaLoraPlugin", False),
        ("axolotl_alpha_lora.AlphaLoraPlugin", False),
    ],
)
def test_a_misspelt_plugin_names_the_right_one(tmp_path, name, by_host):
    said = plan(tmp_path, plugins=[name])
    assert f"`plugins:` holds {name}. Did you mean `{PLUGIN}`?" in said
    if by_host:
        with pytest.raises(AttributeError, match=PLUGIN):
            load_plugin(name)


@pytest.mark.parametrize("name", [PLUGIN, PLUGIN.replace(".", ":", 1), "other.Plugin"])
def test_the_plugin_and_those_of_others_are_fine(tmp_path, model, name):
    block = {"allocation": "uniform"}
    said = plan(tmp_path, base_model=str(model), plugins=[name, PLUGIN], alphalora=block)
    assert said.startswith("exit 0: ") and "Warning" not in said


def test_a_yaml_without_the_plugin_is_planned_with_a_warning(tmp_path, model):
    block = {"allocation": "uniform"}
    said = plan(tmp_path, base_model=str(model), plugins=None, alphalora=block)
    assert said.startswith("exit 0: ") and f"needs `plugins: [{PLUGIN}]`" in said


def test_paths_are_read_as_a_shell_reads_them(tmp_path, model):
    home = tmp_path / "home"
    home.mkdir()
    (home / "base").symlink_to(model)
    base = {"base_model": "~/base", "alphalora": {"allocation": "uniform"}}
    out = ["--output", str(home / "plan.json")]
    (tmp_path / "config.yml").write_text(yaml.safe_dump(base_yaml(**base)))
    assert not CliRunner().invoke(alphalora, ["plan", str(tmp_path / "config.yml"), *out]).exit_code
    for block in ({"plan": "~/plan.json"}, {"allocation": "counts:~/plan.json"}):
        assert plan(tmp_path, **base | {"alphalora": block}).startswith("exit 0: ")
        assert validate(**base | {"alphalora": block}).base_model == str(home / "base")
    cfg = validate(alphalora={"plan": "~/plan.json", "init_from": "~/lora"})
    assert (cfg.alphalora.plan, cfg.alphalora.init_from) == (
        str(home / "plan.json"),
        str(home / "lora"),
    )
    cfg = validate(lora_model_dir="~/out", resume_from_checkpoint="~/out/checkpoint-1")
    assert cfg.lora_model_dir == str(home / "out")
    assert cfg.resume_from_checkpoint == str(home / "out" / "checkpoint-1")


@pytest.mark.parametrize("lora", [False, True])
def test_an_adapter_is_no_base_model(tmp_path, model, lora):
    config = (LoraConfig if lora else AlphaLoraConfig)(target_modules=["q_proj"])
    base = LlamaForCausalLM.from_pretrained(model)
    get_peft_model(base, config).save_pretrained(tmp_path / "run")
    base.config.save_pretrained(tmp_path / "run")  # as the host does at the end of a run
    key = "alphalora.init_from" if lora else "lora_model_dir"
    wrong = {"base_model": str(tmp_path / "run")}
    for said in (said_by_host(**wrong), plan(tmp_path, **wrong)):
        assert f"{tmp_path / 'run'} holds an adapter and no base model" in said
        assert f"as `base_model` ({model})" in said and f"as `{key}`" in said


def test_a_validated_configuration_validates_again(model):
    first = validate(base_model=str(model), lora_dropout=0.0, alphalora={"top_k": 1})
    second = validate_config(DictDefault(first.to_dict()))
    assert first.alphalora_given == second.alphalora_given == ["top_k", "lora_dropout"]
