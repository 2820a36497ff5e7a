"""What `alphalora plan` says of a YAML that is wrong, or that a run would refuse."""

import re

import pytest

from helpers.plan_command import config, plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alphalora": {"experts_per_blok": 3}}, "experts_per_blok.*Did you mean"),
        ({"alphalora": {"total_experts": 3}}, "total_experts is 3.*least that min_experts"),
        ({"alphalora": {"allocation": "mole"}}, "unknown strategy 'mole'"),
        ({"alphalora": {"allocation": {"strategy": "alphalora", "beto": 1}}}, "no option 'beto'"),
        ({"alphalora": {"plan": "missing.json"}}, "cannot read the plan missing.json"),
        ({"alphalora": {"init_from": "~/nope"}}, "config.yml: .*init_from.*/nope is no directory"),
        ({"lora_target_modules": ["q_prj"]}, "q_prj.*matches no module"),
        ({"lora_target_modules": "(q_proj"}, r"'\(q_proj' is no regular expression"),
        ({"alphalora": True}, "must be a block of options"),
        ({"lora_target_modules": None}, "No target layers: set `lora_target_linear: true`"),
        ({"lora_excude_modules": ["x"]}, "lora_excude_modules.*Did you mean `lora_exclude"),
        ({"peft_layers_to_transform": [9]}, "names block 9"),
        ({"base_model": None}, "`base_model` is missing"),
        ({"base_model": "no/such-model"}, "model no/such-model cannot be opened"),
        ({"adapter": "lora"}, "`adapter` is lora, so there is nothing to plan: set `adapter: alph"),
        (
            {"alphalora": {"experts_per_block": "five"}},
            "experts_per_block`: .*number.*, got 'five'",
        ),
        ({"alphalora": {"spend": "ranks"}}, "alphalora.spend`: .*'rank', got 'ranks'"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path, model, changes, message):
    result = plan(config(tmp_path, model, **changes))
    assert result.exit_code == 1
    assert re.search(message, " ".join(result.output.split())), result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": None}, "`adapter: alphalora` is missing"),
        ({"lora_alpha": None}, "`adapter: alphalora` needs `lora_alpha`: the rank and"),
        ({"lora_r": None, "lora_alpha": None}, "needs `lora_r` and `lora_alpha`: the rank"),
        ({"plugins": None}, "`adapter: alphalora` needs `plugins:"),
        ({"peft_use_dora": True}, "`axolotl train` refuses `peft_use_dora`: DoRA rescales"),
        ({"tensor_parallel_size": "2"}, "`axolotl train` refuses `tensor_parallel_size`"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "`axolotl train` refuses `load_in_8bit`"),
    ],
    ids=str,
)
def test_what_a_run_would_refuse_is_said_beside_its_plan(tmp_path, model, changes, message):
    plugins = ["axolotl_alphalora.AlphaLoraPlugin"]
    settings = {"plugins": plugins, "lora_alpha": 8, "tensor_parallel_size": "auto"}
    quiet, said = (
        plan(config(tmp_path, model, **(settings | more))).output for more in ({}, changes)
    )
    assert "Warning" not in quiet and message in " ".join(said.split())


@pytest.mark.parametrize("key", ["lora_model_dir", "resume_from_checkpoint"])
def test_an_adapter_that_the_run_goes_on_with_is_named(tmp_path, model, key, monkeypatch):
    adapter = tmp_path / "adapter"
    missing = plan(config(tmp_path, model, **{key: str(adapter)}))
    assert missing.exit_code == 1
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert plan(config(tmp_path, model, **{key: "outputs/missing"})).exit_code == 1
    assert f"`{key}`: {adapter} has no adapter_config.json" in " ".join(missing.output.split())
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    said = plan(config(tmp_path, model, **{key: str(adapter)}))
    assert said.exit_code == 0
    assert "whose numbers of experts rule: this plan would be that" in " ".join(said.output.split())
    on_hub = plan(config(tmp_path, model, **{key: "someone/adapter"})).exit_code
    assert on_hub == (0 if key == "lora_model_dir" else 1)


def test_a_yaml_that_is_none(tmp_path):
    (tmp_path / "a.yml").write_text("[")
    assert "is not YAML" in plan(tmp_path / "a.yml").output
    (tmp_path / "a.yml").write_text("just words")
    assert "is no Axolotl configuration" in plan(tmp_path / "a.yml").output
    assert "cannot read" in plan(tmp_path / "b.yml").output
