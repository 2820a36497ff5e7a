"""Names, plans and paths that cannot serve are named before data and model are loaded."""

import ast
import json
import logging

import pytest
import yaml
from click.testing import CliRunner
from peft import get_peft_model

from axolotl_alphalora.adapter import AlphaLoraConfig, resolve_targets
from axolotl_alphalora.cli import alphalora
from axolotl_alphalora.planning import Targets
from axolotl_alphalora.planning.config import MIXTURE
from axolotl_alphalora.plugin import loading
from helpers.checkpoints import tiny_model
from helpers.settings import base_yaml, plan, validate

pytestmark = pytest.mark.usefixtures("plugin")
NO_MODULES = [
    (
        {"lora_exclude_modules": ["k_porj"]},
        ["lora_exclude_modules='k_porj'", "Did you mean k_proj?"],
    ),
    (
        {"lora_exclude_modules": ["lm_head", "model.layers.1.mlp.up_prj"]},
        ["up_prj'", "Did you mean model.layers.1.mlp.up_proj?"],
    ),
    ({"lora_exclude_modules": "k_proj"}, ["lora_exclude_modules='k_proj'", "[q_proj]"]),
    ({"lora_exclude_modules": r".*\.k_porj"}, ["lora_exclude_modules='.*", "write a list"]),
    ({"lora_target_modules": ["q_porj"]}, ["lora_target_modules=['q_porj']", "k_proj"]),
    ({"lora_modules_to_save": ["lm_haed"]}, ["lora_modules_to_save='lm_haed'", "mean lm_head?"]),
    ({"peft_layers_to_transform": [2]}, ["peft_layers_to_transform names block 2"]),
    (
        {"peft_layers_to_transform": [0], "peft_layers_pattern": ["blocks"]},
        ["peft_layers_pattern='blocks'", "layers (model.layers)"],
    ),
]


@pytest.mark.parametrize(("changes", "parts"), NO_MODULES, ids=str)
def test_names_that_match_nothing_come_before_the_data(tmp_path, plugin, model, changes, parts):
    linear = {"lora_target_linear": "lora_target_modules" not in changes}
    changes = {"base_model": str(model), **linear, **changes}
    with pytest.raises(ValueError) as error:
        plugin.load_datasets(validate(**changes))
    for said in (str(error.value), plan(tmp_path, **changes)):
        for part in parts:
            assert part in said


@pytest.mark.parametrize(
    "excluded", [["k_porj"], "k_proj", r".*\.k_porj", ["mlp"], ["model.layers.0"], ".*mlp"]
)
def test_peft_refuses_excludes_that_match_nothing(tiny_llama, excluded):
    config = AlphaLoraConfig(target_modules="all-linear", exclude_modules=excluded)
    with pytest.raises(ValueError, match="exclude_modules="):
        get_peft_model(tiny_llama, config)


def test_an_exclude_that_names_what_is_around_layers_tells_how_to_exclude_them(tiny_llama):
    with pytest.raises(ValueError) as error:
        resolve_targets(
            AlphaLoraConfig(target_modules="all-linear", exclude_modules=["mlp"]), tiny_llama
        )
    pattern = ast.literal_eval(str(error.value).rpartition("a list: ")[2].rstrip("."))
    config = AlphaLoraConfig(target_modules="all-linear", exclude_modules=pattern)
    found = resolve_targets(config, tiny_llama)
    assert found and not any("mlp" in name for name in found)


@pytest.mark.parametrize("excluded", [["lm_head"], ["embed_tokens"], ["score"], r".*\.k_proj"])
def test_what_is_there_may_be_excluded(tiny_llama, excluded):
    config = AlphaLoraConfig(target_modules="all-linear", exclude_modules=excluded)
    assert get_peft_model(tiny_llama, config).peft_config["default"].num_experts


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"alphalora": {"plan": "plan.jsn"}}, ["cannot read the plan plan.jsn"]),
        ({"lora_model_dir": "./outt"}, ["lora_model_dir: ./outt", "does not exist"]),
        ({"resume_from_checkpoint": "./outt"}, ["resume_from_checkpoint: ./outt"]),
        ({"alphalora": {"init_from": "./lroa"}}, ["alphalora.init_from: lroa is no directory"]),
        ({"alphalora": {"total_experts": 1}}, ["total_experts is 1, but the least"]),
        (
            {"overrides_of_model_config": {"num_hidden_layers": 1}},
            ["overrides_of_model_config (num_hidden_layers) changes the layers"],
        ),
        (
            {"overrides_of_model_config": {"intermediate_size": 48}},
            ["overrides_of_model_config (intermediate_size) changes the layers"],
        ),
        (
            {"overrides_of_model_config": {"rms_norm_eps": "1e-5"}},
            ["overrides_of_model_config (rms_norm_eps): rms_norm_eps: '1e-5': "],
        ),
        (
            {"overrides_of_model_config": {"rope_scaling": {"type": "linear", "factor": 2.0}}},
            ["overrides_of_model_config (rope_scaling): "],
        ),
    ],
    ids=str,
)
def test_what_is_missing_comes_before_the_data(plugin, model, changes, parts):
    block = {"allocation": "uniform"} if "plan" not in changes.get("alphalora", {}) else {}
    changes = {**changes, "alphalora": block | changes.get("alphalora", {})}
    cfg = validate(base_model=str(model), **changes)
    with pytest.raises(ValueError) as error:
        plugin.load_datasets(cfg)
    for part in parts:
        assert part in str(error.value)
    plugin.load_datasets(cfg, preprocess=True)  # its data serve other runs too


def test_a_head_may_be_named_beside_the_blocks_of_all_linear_layers(tiny_llama):
    found = Targets(linear=True, modules=["lm_head"], layers=[1]).resolve(tiny_llama)
    assert list(found) == [
        name
        for name, module in tiny_llama.named_modules()
        if name == "lm_head" or name.startswith("model.layers.1.") and name.endswith("_proj")
    ]


def test_settings_of_the_model_that_leave_its_layers_alone_may_change(plugin, model):
    overrides = {"max_position_embeddings": 64}
    allocation = {"allocation": "uniform"}
    plugin.load_datasets(
        validate(base_model=str(model), overrides_of_model_config=overrides, alphalora=allocation)
    )


@pytest.mark.parametrize("strategy", ["alphalora", "sensitivity"])
def test_settings_of_the_model_that_change_its_layers_are_refused(plugin, model, strategy):
    """Continuing, evaluating and planning go by the layers of the checkpoint, so training too."""
    cfg = validate(
        base_model=str(model),
        overrides_of_model_config={"num_hidden_layers": 1},
        alphalora={"allocation": strategy},
    )
    with pytest.raises(
        ValueError, match=r"overrides_of_model_config \(num_hidden_layers\) changes"
    ):
        plugin.load_datasets(cfg)


def test_experts_in_layers_that_the_host_freezes_are_refused_before_the_data(plugin, tmp_path):
    tiny_model("llava").save_pretrained(tmp_path)
    options = {"base_model": str(tmp_path), "freeze_mm_modules": True}
    options |= {"alphalora": {"allocation": "uniform"}}
    with pytest.raises(ValueError, match="`freeze_mm_modules` would freeze the experts of .*visio"):
        plugin.load_datasets(validate(**options))
    plugin.load_datasets(validate(**options, lora_exclude_modules=".*(vision|multi_modal).*"))


def test_a_plan_that_counts_another_optimizer_is_refused(tmp_path, plugin, model):
    changes = {"base_model": str(model), "optimizer": "adamw_8bit"}
    block = {"allocation": "uniform", "memory_mib": 1}
    (tmp_path / "config.yml").write_text(yaml.safe_dump(base_yaml(**changes, alphalora=block)))
    arguments = ["plan", str(tmp_path / "config.yml"), "--output", str(tmp_path / "plan.json")]
    assert CliRunner().invoke(alphalora, arguments).exit_code == 0
    saved = {"alphalora": {"plan": str(tmp_path / "plan.json")}}
    plugin.load_datasets(validate(**changes, **saved))
    with pytest.raises(ValueError, match="counts the state of `optimizer: adamw_8bit`, but .* sgd"):
        plugin.load_datasets(validate(**changes | {"optimizer": "sgd"}, **saved))


def test_what_was_settled_before_the_data_serves_the_model(plugin, model, monkeypatch):
    cfg = validate(base_model=str(model), alphalora={"allocation": "uniform"})
    plugin.load_datasets(cfg)
    monkeypatch.setattr(loading, "Allocation", None)  # a second one would fail
    plugin.pre_model_load(cfg)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"alphalora": {"allocation": "uniform", "top_k": 8}},
            ["top_k is 8", "no layer has more than 5 experts", "set top_k to 4 or less"],
        ),
        (
            {"alphalora": {"allocation": "uniform", "experts_per_block": 1, "top_k": 8}},
            ["top_k is 8", "no layer has more than one expert", "plan more experts"],
        ),
        (
            {"alphalora": {"allocation": "uniform", "spend": "rank", "top_k": 4}},
            ["top_k is 4", "no layer has more than one expert"],
        ),
        (
            {"alphalora": {"allocation": "uniform", "top_k": 0.95}},
            ["top_k is 0.95, which of 5 experts", "is all of them", "lower top_k"],
        ),
        (
            {"alphalora": {"allocation": "uniform", "experts_per_block": 1, "top_k": 0.5}},
            ["top_k is 0.5", "no layer has more than one expert", "plan more experts"],
        ),
        (
            {"lora_r": 4096, "alphalora": {"allocation": "uniform"}},
            ["In 14 of 14 layers", "k_proj (32x64) gets 5 experts of rank 4,096", "lora_r"],
        ),
        (
            {"lora_r": 128, "alphalora": {"allocation": "uniform", "share_a": True}},
            ["In 14 of 14 layers", "5 experts of rank 128, which share one A, 128 in all"],
        ),
        (
            {"alphalora": {"allocation": "uniform", "experts_per_block": 1000}},
            ["The adapter is larger than what it adapts", "on base layers of 73,728", "lora_r"],
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("saved", [False, True])
def test_a_plan_that_is_hardly_meant_is_said(
    tmp_path, plugin, model, monkeypatch, caplog, changes, parts, saved
):
    changes = {"base_model": str(model), **changes}
    if saved:
        (tmp_path / "config.yml").write_text(yaml.safe_dump(base_yaml(**changes)))
        arguments = [str(tmp_path / "config.yml"), "--output", str(tmp_path / "plan.json")]
        CliRunner().invoke(alphalora, ["plan", *arguments])
        made = json.loads((tmp_path / "plan.json").read_text())
        changes["alphalora"] = {"plan": "plan.json", **{key: made[key] for key in MIXTURE}}
    monkeypatch.setattr("axolotl.utils.logging.get_logger", logging.getLogger)
    plugin.load_datasets(validate(**changes))
    logged = " ".join(r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)
    for said in (logged, plan(tmp_path, **changes)):
        for part in parts:
            assert part in said


@pytest.mark.parametrize(
    "block",
    [
        {},
        {"spend": "rank"},
        {"top_k": 5},
        {"top_k": 1},
        {"top_k": 0.5, "segments": 2, "router_rank": 2, "share_a": True},
        {"experts_per_block": 9, "share_a": True},
    ],
)
def test_what_is_common_is_no_cause_for_a_word(tmp_path, model, block):
    said = plan(tmp_path, base_model=str(model), alphalora={"allocation": "uniform", **block})
    assert said.startswith("exit 0: ") and "Warning" not in said


@pytest.mark.refused(
    "Verbs",
    "`train`, `evaluate` with a plan, adapter or target that is not there",
    "before the data",
)
@pytest.mark.parametrize(
    ("verb", "changes", "message"),
    [
        ("train", {"alphalora": {"plan": "~/no.json"}}, "cannot read the plan"),
        ("evaluate", {"lora_model_dir": "./nothing"}, "lora_model_dir: ./nothing has no readable"),
    ],
)
def test_the_host_stops_before_it_tokenises(host, tmp_path, verb, changes, message):
    prepared = tmp_path / "prepared"
    run = host.run(tmp_path, verb, dataset_prepared_path=str(prepared), **changes)
    assert run.code != 0 and message in " ".join(run.log.split())
    assert not prepared.exists()
