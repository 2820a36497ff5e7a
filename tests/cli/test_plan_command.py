"""`alphalora plan`, as a console script and as a verb of Axolotl."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from axolotl_alphalora.allocation import Plan
from axolotl_alphalora.cli import alphalora
from helpers.plan_command import config, plan

BIN = Path(sys.executable).parent


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


SHAPE = {"top_k": 0.5, "segments": 2, "router_rank": 3, "share_a": True}


def test_the_shape_of_the_mixtures_is_printed_saved_and_asked_for_again(tmp_path, model):
    saved = tmp_path / "plan.json"
    block = {"allocation": "uniform", "total_experts": 16}
    said = plan(config(tmp_path, model, alphalora=block | SHAPE), "--output", saved).output
    flat = " ".join(said.split())
    assert "Experts per block: uniform, rank 4, top-50%" in flat
    assert (
        "4 experts, each cut into 2 of rank 2; 4 of 8 active; routers of rank 3; one A shared by "
        "the experts of a layer."
    ) in flat
    found = Plan.load(saved)
    assert {key: getattr(found, key) for key in SHAPE} == SHAPE
    again = plan(config(tmp_path, model, alphalora=SHAPE | {"plan": str(saved)}), "--json")
    assert Plan.from_dict(json.loads(again.stdout)) == found
    other = plan(config(tmp_path, model, alphalora={"plan": str(saved)}))
    assert other.exit_code == 1 and "the plan says segments 2, but" in other.output


def test_the_line_for_the_yaml_is_taken_as_it_is_printed(tmp_path, model):
    shapes = {"plan.json": SHAPE, "plan #1.json": {"top_k": 1}, "a, {b}: 'c'.json": {}}
    for name, shape in shapes.items():
        saved = tmp_path / name
        said = plan(config(tmp_path, model, alphalora=shape), "--output", saved).output
        line = said.replace("\n", " ").partition("In the YAML: ")[2]
        block = yaml.safe_load(line)["alphalora"]
        assert block == {"plan": str(saved)} | shape
        again = plan(config(tmp_path, model, alphalora=block))
        assert again.exit_code == 0, again.output


def test_a_share_of_one_expert_here_and_more_there_is_said(tmp_path, model):
    def said(**block):
        return " ".join(plan(config(tmp_path, model, alphalora=block)).output.split())

    uneven = {"allocation": "counts:[2, 4, 8, 8]"}
    words = "which is one expert in 4 of 8 routed layers and more in the others"
    assert words in said(top_k=0.25, **uneven)
    assert words not in said(top_k=0.25, segments=2, **uneven)
    assert words not in said(top_k=0.5, allocation="counts:[1, 4, 8, 8]")
    assert words not in said(top_k=1, **uneven)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"lora_r": 6, "alphalora": {"segments": 4}}, ["`lora_r` is 6", "multiple of 4"]),
        ({"alphalora": {"top_k": 1.0}}, ["`alphalora.top_k`", "a share", "not 1.0"]),
        ({"alphalora": {"spend": "rank", "share_a": True}}, ["alphalora.share_a", "spend: rank"]),
    ],
    ids=str,
)
def test_a_shape_that_cannot_be_is_refused_with_its_key(tmp_path, model, changes, parts):
    result = plan(config(tmp_path, model, **changes))
    assert result.exit_code == 1
    for part in parts:
        assert part in result.output


def test_block_indices_hold_with_all_linear_layers_too(tmp_path, model):
    layers = {"lora_target_modules": None, "lora_target_linear": True}
    block = {"alphalora": {"total_experts": 3}, "peft_layers_to_transform": [2]}
    found = json.loads(plan(config(tmp_path, model, **layers, **block), "--json").stdout)
    assert [row["name"] for row in found["units"]] == ["model.layers.2"]


def test_a_plan_for_another_base_says_so(tmp_path, model):
    path = tmp_path / "plan.json"
    plan(config(tmp_path, model), "--output", path)
    path.write_text(path.read_text().replace(str(model), "some/other-model"))
    with pytest.warns(UserWarning, match="made for some/other-model and is used for"):
        plan(config(tmp_path, model, alphalora={"plan": str(path)}))


def test_matrices_without_a_sound_fit_are_named_with_what_was_done(broken):
    said = " ".join(plan(broken).output.split())
    assert "model.layers.1.self_attn.q_proj (rank 4 of 64; few eigenvalues)" in said
    _, _, unfitted = said.partition("counted with the mean alpha of their kind")
    assert "model.layers.2.self_attn.k_proj (rank 2 of 32; no power law" in unfitted
    assert "model.layers.3.mlp.up_proj (all zero)" in unfitted


def test_a_saved_plan_is_the_printed_one_and_can_be_named_in_the_yaml(tmp_path, model):
    path = tmp_path / "plan.json"
    printed = plan(config(tmp_path, model), "--json", "--output", path)
    assert Plan.load(path) == Plan.from_dict(json.loads(printed.stdout))
    again = plan(config(tmp_path, model, alphalora={"plan": str(path)}), "--json")
    assert json.loads(again.stdout) == json.loads(printed.stdout)


@pytest.mark.parametrize("command", [["alphalora"], ["axolotl", "alphalora"]])
@pytest.mark.usefixtures("fresh_process")
def test_both_ways_to_reach_it(tmp_path, model, command):
    if command[0] == "axolotl":
        pytest.importorskip("axolotl")
    done = subprocess.run(
        [BIN / command[0], *command[1:], "plan", str(model), "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout[done.stdout.index("{\n") :])["total_experts"] == 20


@pytest.mark.parametrize("command", ["plan", "analyze"])
def test_the_second_time_no_training_stack_is_imported(fresh_process, model, command):
    code = (
        "import sys; sys.argv = ['alphalora', *sys.argv[1:]]\n"
        "from axolotl_alphalora.cli import alphalora\n"
        "alphalora(standalone_mode=False)\n"
        "print({m.partition('.')[0] for m in sys.modules}, file=sys.stderr)"
    )
    plan(model)
    CliRunner().invoke(alphalora, ["analyze", str(model)])
    done = fresh_process("-c", code, command, model)
    loaded = ast.literal_eval(done.stderr.splitlines()[-1])
    heavy = {"axolotl", "trl", "peft", "transformers", "datasets", "pandas", "matplotlib"}
    assert "torch" in loaded and not loaded & heavy


def test_help_needs_no_torch_and_says_what_the_commands_say(fresh_process):
    code = (
        "import sys; from axolotl_alphalora.cli import alphalora\n"
        "for name in [], ['plan'], ['analyze'], ['strategies']:\n"
        "    alphalora([*name, '--help'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    done = fresh_process("-c", code)
    shown = " ".join(done.stdout.split())
    for name in ("analyze", "plan", "quickstart", "strategies"):
        text = alphalora.get_command(None, name).get_short_help_str(200)
        assert f"{name} {text}" in shown


def test_confidence_is_shown_and_stored(tmp_path, model):
    path = tmp_path / "plan.json"
    shown = plan(model, "--confidence", "--samples", "20", "--output", path)
    assert shown.exit_code == 0, shown.output
    found = Plan.load(path)
    for unit in found.units:
        low, high = unit.interval
        assert low < high
        assert f"{low:.2f} - {high:.2f}" in shown.output
    assert "resampling" in shown.output
    table, _, saved = shown.output.partition("Saved to ")
    assert max(map(len, table.splitlines())) <= 80
    assert f"alphalora: {{plan: {path}}}" in saved


def test_a_plan_is_told_what_the_study_found_of_its_kind(tmp_path, model, monkeypatch):
    figures = {"difference": 0.001, "low": -0.003, "high": 0.005, "more": 0.0, "seeds": 5}
    found = {"verdict": "undecided", **figures}
    row = {"strategy": "alphalora", "options": {}, "segments": 1, "named": "its numbers"}
    study = {"where": "a model", "plans": [{**row, "against": {"uniform": found}}]}
    monkeypatch.setattr("axolotl_alphalora.report.evidence.read_study", lambda: study)
    said = "beside its numbers, the same number of experts in every block"
    assert said in " ".join(plan(model).output.split())
    even = plan(config(tmp_path, model, alphalora={"allocation": "uniform"}))
    assert even.exit_code == 0 and "study" not in even.output
    result = plan(model, "--json")
    assert "study" not in result.stdout and json.loads(result.stdout)


def test_json_is_all_there_is_on_stdout(tmp_path, model):
    path = tmp_path / "plan.svg"
    flags = ["--json", "--confidence", "--samples", "10", "--per-module", "--plot", path]
    result = plan(model, *flags, "--output", tmp_path / "plan.json")
    assert Plan.from_dict(json.loads(result.stdout)).total_experts == 20
    assert path.exists()


def test_every_matrix_is_listed_with_its_notes(broken):
    shown = plan(broken, "--per-module").output
    table = shown[shown.index("Matrices") :]
    assert table.count("self_attn.q_proj") == 4
    numbered = re.search(r"q_proj +64x64 .* 4/64 +(\d)", table)
    assert re.search(rf"^ +{numbered[1]}  rank 4 of 64; few eigenvalues$", table, re.M)
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plot", "a.jpg"], "a.jpg: its name must end in one of .png, .svg, .pdf, .html"),
        (["--spectra"], "name its file with --plot"),
        (["--samples", "20"], "--confidence"),
        (["--confidence", "--samples", "0"], "x>=10"),
        (["--compare", "hil"], "'hil' is no strategy"),
        (["--strategy", "hil"], "'hil' is no strategy"),
        (["--strategy", "uniform:3"], "has no short form"),
        (["--compare", "estimator=hil"], "unknown estimator 'hil'"),
        (["--compare", "hill+ks"], "estimator is named twice"),
        (["--compare", "beto=1"], "no option 'beto'"),
        (["--compare", "window=2"], "window must be"),
        (["--compare", "hill", "--confidence"], "leave out --confidence"),
        (["hill"], "'hill' is one argument too many: is --compare missing?"),
        (["--strategy", "sensitivity"], "give an Axolotl YAML with `datasets`"),
        (["--strategy", "eva"], "goes by activations on the run's training data: give an Axolotl"),
        (["--compare", "eva"], "give an Axolotl YAML with `datasets`"),
        (["--compare", "uniform", "sensitivity"], "give an Axolotl YAML with `datasets`"),
        (["--strategy", "uniform", "--confidence"], "leave out --confidence"),
        (["--strategy", "mola", "--plot", "a.png", "--spectra"], "leave out --spectra"),
        (["--as-lora", "--json", "--output", "a.yml"], "--json writes no .yml file: leave out"),
        (["--as-lora", "--per-module"], "prints a LoRA and nothing else: leave out --per-module"),
        (["--as-lora", "--compare", "mola"], "leave out --compare"),
    ],
)
def test_bad_options_are_refused_before_the_model_is_read(options, message):
    result = plan("no/such-model", *options)
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())


def test_weightwatcher_is_refused_before_the_model_is_read(tmp_path, monkeypatch):
    allocation = {"strategy": "alphalora", "estimator": "weightwatcher"}
    path = config(tmp_path, "no/such-model", alphalora={"allocation": allocation})
    assert "use the estimator ks" in plan(path, "--confidence").output
    monkeypatch.setitem(sys.modules, "weightwatcher", None)
    assert "`pip install weightwatcher`" in plan(path).output


def test_a_saved_plan_is_not_resampled(tmp_path, model):
    path = tmp_path / "plan.json"
    plan(config(tmp_path, model), "--output", path)
    result = plan(config(tmp_path, model, alphalora={"plan": str(path)}), "--confidence")
    assert result.exit_code == 1 and "remove `alphalora.plan`" in result.output


def test_modules_that_differ_show_as_mean_and_range_and_are_counted(tmp_path, model):
    block = {"allocation": {"strategy": "alphalora", "granularity": "module"}, "total_experts": 9}
    path = config(tmp_path, model, alphalora=block)
    found = Plan.from_dict(json.loads(plan(path, "--json").stdout))
    shown = plan(path, "--per-module").output
    for block_name, mean in found.block_numbers.items():
        numbers = [n for name, n in found.numbers.items() if name.startswith(f"{block_name}.")]
        spread = f"{min(numbers)}-{max(numbers)}" if len(set(numbers)) > 1 else str(numbers[0])
        assert f" {mean:.1f} ({spread}) " in shown
    assert "\n18 experts on 8 of 8 matrices.\n" in shown
    rows = shown[shown.index("Matrices (n: experts") :]
    for module in found.modules:
        assert re.search(rf"{module.name.split('.', 3)[3]} +\d+x\d+ +{module.experts} +4 ", rows)
    assert "Least trained: " in shown and "least trained: model.layers.0 (" not in shown.lower()


def test_a_picture_of_a_plan_without_scores_is_drawn(tmp_path, model):
    path = tmp_path / "plan.html"
    shown = plan(model, "--strategy", "uniform", "--plot", path)
    assert shown.exit_code == 0, shown.output
    assert "Budget: 20 experts, met exactly." in path.read_text()
