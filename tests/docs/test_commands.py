"""Every command of README and docs is run here, or by another test, or is not run for a reason."""

import ast
import json
import re
import shlex

import pytest
import torch
import yaml
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import generate
from axolotl_alphalora.cli import alphalora
from helpers.balancing import adapted
from helpers.models import save_tiny_model

HERE = (
    "alphalora analyze path/to/model",
    "alphalora config-schema",
    "alphalora export outputs/alphalora --output lora --data rows.jsonl --rank 16 --same-rank",
    "alphalora export outputs/alphalora --output small --data rows.jsonl --rank auto --max-kl 0.05",
    "alphalora inspect outputs/alphalora",
    "alphalora inspect outputs/alphalora --data rows.jsonl --plot experts.html",
    "alphalora plan config.yml",
    "alphalora plan config.yml --as-lora --output adapter_config.json",
    "alphalora plan config.yml --as-lora --output lora.py",
    "alphalora plan config.yml --as-lora --output lora.yml",
    "alphalora plan config.yml --compare alphalora opposite shuffled",
    "alphalora plan config.yml --compare mola:2468 uniform",
    "alphalora plan config.yml --confidence --per-module",
    "alphalora plan config.yml --output plan.json",
    "alphalora plan config.yml --plot plan.html --spectra",
    "alphalora serve outputs/alphalora --print",
    "alphalora strategies",
)
"""Run in a folder with a tiny model, an adapter, rows and a YAML; must exit with 0."""

ELSEWHERE = {
    "python -m uv run --extra quickstart axolotl alphalora quickstart": (
        "tests/quickstart/test_run.py::test_killed_continued_finished"
    ),
    "axolotl train config.yml": (
        "tests/plugin/test_train.py::test_the_real_command_line_through_accelerate"
    ),
    "axolotl train lora.yml": (
        "tests/plugin/test_as_lora.py::test_an_exported_lora_trains_with_the_planned_ranks"
    ),
    "alphalora lm-eval config.yml --limit 100": (
        "tests/plugin/test_verbs.py::test_lm_eval_scores_the_adapter"
    ),
    "alphalora plan config.yml --compare alphalora mola:2468 sensitivity uniform "
    "--plot compare.png": "tests/cli/test_compare_measured.py::"
    "test_a_plan_by_gradients_varies_with_the_halves_of_its_sample",
    "alphalora inspect outputs/alphalora --data config.yml --per-module": (
        "tests/plugin/test_export.py::test_the_routers_are_watched_on_the_run_s_own_rows"
    ),
    "alphalora export outputs/alphalora --output lora --data config.yml": (
        "tests/plugin/test_export.py::test_the_run_s_own_rows_calibrate_and_measure"
    ),
    "alphalora export outputs/alphalora --output lora-16 --data rows.jsonl --rank 16 --same-rank "
    "--max-kl 0.05": (
        "tests/plugin/test_export.py::test_a_price_above_the_limit_is_an_error_and_leaves_nothing"
    ),
    "alphalora serve alphalora-quickstart/adapter": (
        "tests/cli/test_serve.py::test_vllm_is_started_where_it_is"
    ),
    "alphalora export alphalora-quickstart/adapter --output lora --data "
    "alphalora-quickstart/train.jsonl --gguf lora.gguf": (
        "tests/cli/test_probe_command.py::test_llama_cpp_serves_the_file_as_the_probe_says"
    ),
    "python example_configs/llama_cpp.py lora.gguf --port 8080": (
        "tests/cli/test_probe_command.py::test_llama_cpp_serves_the_file_as_the_probe_says"
    ),
    "alphalora probe http://localhost:8080 --probe lora/probe.json": (
        "tests/cli/test_probe_command.py::test_llama_cpp_serves_the_file_as_the_probe_says"
    ),
    "alphalora probe http://localhost:8000 --probe alphalora-quickstart/adapter/probe.json": (
        "tests/quickstart/test_run.py::test_killed_continued_finished"
    ),
    "alphalora probe outputs/alphalora --write --data rows.jsonl": (
        "tests/cli/test_probe_command.py::test_a_directory_is_recognised"
    ),
    "pip install docs/example-strategy": (
        "tests/allocation/test_installed_package.py::test_the_strategy_is_listed_with_its_options"
    ),
    "alphalora strategies width": (
        "tests/allocation/test_installed_package.py::test_the_strategy_is_listed_with_its_options"
    ),
    **dict.fromkeys(
        (
            "torchrun --nproc-per-node=4 -m benchmarks.ranks --engine fsdp2 --model 1b",
            "CUDA_VISIBLE_DEVICES=0 python -m benchmarks.ranks --engine ddp --accumulation 4 "
            "--model 1b",
        ),
        "tests/scale/test_gpus.py::test_two_gpus_train_like_one",
    ),
    **dict.fromkeys(
        (
            "python -m benchmarks.study run --hours 8 --data path/to/data --threads 1",
            'grep -v \'"cell": "cpu-bf16/smollm2/gsm8k/320/uniform/0.0032/0"\' '
            "benchmarks/study/results.jsonl > again.jsonl",
            "python -m benchmarks.study run --hours 1 --data path/to/data --threads 1 "
            "--results again.jsonl --cells '*/gsm8k/320/uniform/0.0032/0'",
        ),
        "tests/benchmarks/study/test_run.py::test_a_run_that_is_killed_loses_one_cell_at_most",
    ),
    "python -m benchmarks.study list": (
        "tests/benchmarks/study/test_run.py::test_a_run_that_is_killed_loses_one_cell_at_most"
    ),
    "python -m benchmarks.study report": (
        "tests/benchmarks/study/test_report.py::test_the_pages_pictures_are_those_of_the_results"
    ),
    "python docs/generate.py": "tests/docs/test_pages.py::test_a_page_says_what_the_code_says",
}
"""What a test does, with other names and sizes."""

BY_CI = "it is what CI runs"
BY_HAND = "it would start the tests, or change the environment that they run in"
NOT_RUN = {
    "python -m pip install uv": BY_CI,
    "python -m uv run --group test pytest": BY_CI,
    ".ci/run": BY_CI,
    ".ci/pythons": "it takes hours, before a release",
    ".ci/vllm": "it makes an environment of its own, before a release",
    "uv sync --group test --group lint": BY_HAND,
    'uv run pytest -m "not slow"': BY_HAND,
    "uv run pytest -n 0 tests/allocation": BY_HAND,
    "uv run ruff check .": BY_CI,
    "uv run ruff format .": BY_HAND,
    "uv run mypy": BY_CI,
    'pip install "/path/to/axolotl-alphalora[plot]"': BY_HAND,
    "pip wheel --no-deps /path/to/axolotl-alphalora": "it fetches the build's requirements",
    "pip install axolotl_alphalora-*.whl": BY_HAND,
}
CURL = "curl localhost:8000/v1/chat/completions "


def commands(text: str) -> list[str]:
    """The commands of a page's ```bash blocks, without comments; those joined by && one by one."""
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"\s+# .*", "", line)
            found += [part.strip() for part in line.split(" && ") if part.strip()]
    return found


PAGES = {page.name: commands(page.read_text()) for page in generate.pages()}


def test_every_command_is_known_and_every_known_command_is_on_a_page():
    on_pages = {command for found in PAGES.values() for command in found}
    on_pages = {command for command in on_pages if not command.startswith(CURL)}
    known = [*HERE, *ELSEWHERE, *NOT_RUN]
    assert len(known) == len(set(known))
    assert on_pages - set(known) == set(), "run it here, name the test, or say why it is not run"
    assert set(known) - on_pages == set()


@pytest.mark.parametrize("test", sorted(set(ELSEWHERE.values())))
def test_the_test_that_is_named_is_there(test):
    file, name = test.split("::")
    tree = ast.parse((generate.ROOT / file).read_text())
    assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_ci_runs_what_it_is_said_to_run():
    ran = (generate.ROOT / ".ci" / "run").read_text()
    named = [c.removeprefix("uv run ") for c, why in NOT_RUN.items() if why == BY_CI]
    assert [command for command in named if command != ".ci/run" and command not in ran] == []


def test_the_servers_request_is_one_that_it_takes():
    (request,) = (c for found in PAGES.values() for c in found if c.startswith(CURL))
    parts = shlex.split(request)
    body = json.loads(parts[parts.index("-d") + 1])
    assert set(body) == {"messages", "max_tokens"} and body["messages"][0]["role"] == "user"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the commands are about: `path/to/model`, `config.yml`, `rows.jsonl`, an adapter."""
    root = tmp_path_factory.mktemp("commands")
    model = root / "path" / "to" / "model"
    save_tiny_model(model)
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(model, num_hidden_layers=4)
    LlamaForCausalLM(config).save_pretrained(model)
    adapter = adapted(AutoModelForCausalLM.from_pretrained(model))
    adapter.peft_config["default"].base_model_name_or_path = str(model)
    adapter.save_pretrained(root / "outputs" / "alphalora")
    rows = [{"instruction": f"say {word}", "output": word * 2} for word in "abcdefgh"]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "base_model": str(model),
        "plugins": ["axolotl_alphalora.AlphaLoraPlugin"],
        "adapter": "alphalora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_linear": True,
        "alphalora": {"experts_per_block": 3},
    }
    (root / "config.yml").write_text(yaml.safe_dump(settings))
    return root


@pytest.mark.usefixtures("combinations")
@pytest.mark.parametrize("command", HERE)
def test_the_command_runs(folder, command, monkeypatch):
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(alphalora, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    written = re.findall(r"--(?:output|plot) (\S+)", command)
    assert [name for name in written if not (folder / name).exists()] == []
    assert done.stdout or written
