"""`alphalora plan`, as a console script and as a verb of Axolotl."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from transformers import LlamaForCausalLM

from axolotl_alphalora.allocation import Plan
from axolotl_alphalora.cli import alphalora
from conftest import tiny_llama_config

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    LlamaForCausalLM(tiny_llama_config(num_hidden_layers=4)).save_pretrained(folder)
    return folder


def plan(*arguments):
    return CliRunner().invoke(alphalora, ["plan", *map(str, arguments)])


def config(tmp_path, model, **changes):
    path = tmp_path / "config.yml"
    settings = {
        "base_model": str(model),
        "adapter": "alphalora",
        "lora_r": 4,
        "lora_target_modules": ["q_proj", "up_proj"],
        "alphalora": {"total_experts": 10, "max_experts": 4},
    }
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def test_a_model_directory_gets_a_table_that_fits_80_columns(model):
    result = plan(model)
    assert result.exit_code == 0, result.output
    assert "model.layers.3" in result.output and "total" in result.output
    assert max(map(len, result.output.splitlines())) <= 80


def test_a_yaml_decides_targets_rank_and_budget(tmp_path, model):
    result = plan(config(tmp_path, model), "--json")
    assert result.exit_code == 0, result.output
    found = Plan.from_dict(json.loads(result.stdout))
    assert found.total_experts == 10
    assert max(found.counts.values()) <= 4
    assert {name.rpartition(".")[2] for name in found.counts} == {"q_proj", "up_proj"}
    assert found.rank == 4
    assert found.weights["source"] == "safetensors"


def test_block_indices_hold_with_all_linear_layers_too(tmp_path, model):
    layers = {"lora_target_modules": None, "lora_target_linear": True}
    block = {"alphalora": {"total_experts": 3}, "peft_layers_to_transform": [2]}
    found = json.loads(plan(config(tmp_path, model, **layers, **block), "--json").stdout)
    assert [row["name"] for row in found["blocks"]] == ["model.layers.2"]


def test_a_plan_for_another_base_says_so(tmp_path, model):
    path = tmp_path / "plan.json"
    plan(config(tmp_path, model), "--output", path)
    path.write_text(path.read_text().replace(str(model), "some/other-model"))
    with pytest.warns(UserWarning, match="made for some/other-model and is used for"):
        plan(config(tmp_path, model, alphalora={"plan": str(path)}))


def test_a_rank_deficient_matrix_is_pointed_out(tmp_path, model):
    broken = LlamaForCausalLM.from_pretrained(model)
    weight = broken.model.layers[1].self_attn.q_proj.weight.data
    weight[4:] = 0
    broken.save_pretrained(tmp_path / "broken")
    with pytest.warns(UserWarning, match=r"layers.1.self_attn.q_proj has numerical rank 4 of 64"):
        plan(tmp_path / "broken")


def test_a_saved_plan_is_the_printed_one_and_can_be_named_in_the_yaml(tmp_path, model):
    path = tmp_path / "plan.json"
    printed = plan(config(tmp_path, model), "--json", "--output", path)
    assert Plan.load(path) == Plan.from_dict(json.loads(printed.stdout))
    again = plan(config(tmp_path, model, alphalora={"plan": str(path)}), "--json")
    assert json.loads(again.stdout) == json.loads(printed.stdout)


@pytest.mark.parametrize("command", [["alphalora"], ["axolotl", "alphalora"]])
def test_both_ways_to_reach_it(tmp_path, model, command):
    done = subprocess.run(
        [BIN / command[0], *command[1:], "plan", str(model), "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout[done.stdout.index("{\n") :])["total_experts"] == 20


def test_the_model_is_not_loaded_nor_the_host_imported(model):
    code = (
        "import sys; sys.argv = ['alphalora', 'plan', sys.argv[1]]\n"
        "from axolotl_alphalora.cli import alphalora\n"
        "alphalora(standalone_mode=False)\n"
        "assert not any(m.split('.')[0] in ('axolotl', 'trl') for m in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(model)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alphalora": {"experts_per_blok": 3}}, "experts_per_blok.*Did you mean"),
        ({"alphalora": {"total_experts": 3}}, "between 4 and|at least 4"),
        ({"alphalora": {"allocation": "mola"}}, "unknown strategy 'mola'"),
        ({"alphalora": {"allocation": {"strategy": "alphalora", "beto": 1}}}, "no option 'beto'"),
        ({"alphalora": {"plan": "missing.json"}}, "cannot read the plan missing.json"),
        ({"lora_target_modules": ["q_prj"]}, "q_prj.*matches no module"),
        ({"alphalora": True}, "must be a block of options"),
        ({"lora_target_modules": None}, "No target layers: set `lora_target_linear: true`"),
        ({"lora_excude_modules": ["x"]}, "lora_excude_modules.*Did you mean `lora_exclude"),
        ({"peft_layers_to_transform": [9]}, "names block 9"),
        ({"base_model": None}, "`base_model` is missing"),
        ({"base_model": "no/such-model"}, "base_model no/such-model cannot be opened"),
        ({"adapter": "lora"}, "`adapter` is lora, so there is nothing to plan"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path, model, changes, message):
    import re

    result = plan(config(tmp_path, model, **changes))
    assert result.exit_code == 1
    assert re.search(message, " ".join(result.output.split())), result.output
    assert "Traceback" not in result.output


def test_a_yaml_that_is_none(tmp_path):
    (tmp_path / "a.yml").write_text("[")
    assert "is not YAML" in plan(tmp_path / "a.yml").output
    (tmp_path / "a.yml").write_text("just words")
    assert "is no Axolotl configuration" in plan(tmp_path / "a.yml").output
    assert "cannot read" in plan(tmp_path / "b.yml").output
