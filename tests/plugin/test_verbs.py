"""The other verbs of Axolotl on a trained adapter, and a YAML that contradicts it."""

import json
import os
import re
import shutil
import signal
import socket
import time

import pytest
import yaml
from gradio_client import Client
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.distributed import checkpoint
from transformers import AutoModelForCausalLM

import axolotl_alphalora.adapter  # noqa: F401
from axolotl_alphalora.planning import AlphaLoraConfigBlock

FRESH = "runs a fresh AlphaLoRA adapter"


@pytest.fixture(scope="module")
def trained(host, tmp_path_factory):
    return host.train(tmp_path_factory.mktemp("trained"), max_steps=4, save_steps=4)


def flat(log: str) -> str:
    """A log without the line breaks and padding that a logger adds."""
    return " ".join(log.split())


@pytest.mark.works("Verbs", "`evaluate`, with `lora_model_dir`")
def test_evaluate_reports_the_loss_of_the_trained_adapter(host, trained, tmp_path):
    run = host.run(tmp_path, "evaluate", "--lora-model-dir", str(trained.out), max_steps=4)
    assert run.code == 0, run.log[-4000:]
    assert FRESH not in run.log
    last = [row["eval_loss"] for row in trained.history(4) if "eval_loss" in row][-1]
    found = re.findall(r"eval_loss: ([0-9.]+)", run.log)
    assert float(found[-1]) == pytest.approx(last, rel=1e-4)
    assert "eval_alphalora/aux_loss" in run.log


def test_settings_that_the_yaml_leaves_out_are_the_adapters(host, trained, tmp_path):
    bare = {"alphalora": ..., "lora_r": ..., "lora_alpha": ..., "lora_target_linear": ...}
    run = host.run(tmp_path, "evaluate", "--lora-model-dir", str(trained.out), **bare)
    assert run.code == 0, run.log[-4000:]
    last = [row["eval_loss"] for row in trained.history(4) if "eval_loss" in row][-1]
    found = re.findall(r"eval_loss: ([0-9.]+)", run.log)
    assert float(found[-1]) == pytest.approx(last, rel=1e-4)


@pytest.mark.works("Verbs", "`evaluate` on a run's own `output_dir`, and says so")
def test_evaluate_finds_the_adapter_of_the_run(host, trained, tmp_path):
    shutil.copytree(trained.out, tmp_path / "out")
    for folder in (tmp_path / "out").glob("checkpoint-*"):
        shutil.rmtree(folder)
    run = host.run(tmp_path, "evaluate", max_steps=4)
    assert run.code == 0, run.log[-4000:]
    assert "AlphaLoRA: axolotl evaluate runs the adapter in out" in flat(run.log)
    last = [row["eval_loss"] for row in trained.history(4) if "eval_loss" in row][-1]
    found = re.findall(r"eval_loss: ([0-9.]+)", run.log)
    assert float(found[-1]) == pytest.approx(last, rel=1e-4)


@pytest.mark.refused(
    "Verbs", "`evaluate`, `inference` where it is not clear which adapter is meant"
)
@pytest.mark.parametrize("verb", ["evaluate", "inference"])
def test_a_run_without_a_final_adapter_asks_which_one_is_meant(host, trained, tmp_path, verb):
    shutil.copytree(trained.out / "checkpoint-4", tmp_path / "out" / "checkpoint-4")
    run = host.run(tmp_path, verb, typed="Repeat 1\n")
    assert run.code != 0
    assert "holds checkpoints but no finished adapter" in flat(run.log)
    assert "--lora-model-dir DIR" in flat(run.log) and "out/checkpoint-4" in flat(run.log)
    shutil.copytree(trained.out, tmp_path / "out", dirs_exist_ok=True)
    later = time.time() + 60
    os.utime(tmp_path / "out" / "checkpoint-4" / "adapter_model.safetensors", (later, later))
    run = host.run(tmp_path, verb, typed="Repeat 1\n")
    assert run.code != 0
    assert "has checkpoints that are newer than its adapter" in flat(run.log)


def test_a_process_that_a_launcher_starts_knows_its_verb(host, tmp_path):
    """As `accelerate launch` and `torchrun` start it, without the host's command line."""
    checkpoint = tmp_path / "out" / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (checkpoint / name).touch()
    config = str(host.write(tmp_path))
    run = host.command(tmp_path, config, module="axolotl.cli.evaluate")
    assert run.code != 0
    assert "holds checkpoints but no finished adapter" in flat(run.log)


def test_evaluate_without_an_adapter_warns_loudly(host, tmp_path):
    run = host.run(tmp_path, "evaluate")
    assert run.code == 0, run.log[-4000:]
    assert f"axolotl evaluate was given no trained adapter: it {FRESH}" in flat(run.log)


def test_training_does_not_warn(trained):
    assert FRESH not in trained.log


@pytest.mark.works("Verbs", "`inference`, with `lora_model_dir` or on a run's own `output_dir`")
def test_inference_with_and_without_the_adapter(host, trained, tmp_path):
    run = host.run(tmp_path, "inference", "--lora-model-dir", str(trained.out), typed="Repeat 1\n")
    assert FRESH not in run.log
    assert "Repeat 1" in run.log
    shutil.copytree(trained.out, tmp_path / "own" / "out")
    run = host.run(tmp_path / "own", "inference", typed="Repeat 1\n")
    assert FRESH not in run.log
    assert "AlphaLoRA: axolotl inference runs the adapter in out" in flat(run.log)
    assert "Repeat 1" in run.log
    (tmp_path / "none").mkdir()
    run = host.run(tmp_path / "none", "inference", typed="")
    assert f"axolotl inference was given no trained adapter: it {FRESH}" in flat(run.log)


@pytest.mark.works("Verbs", "`inference --gradio`")
def test_gradio_serves_the_adapter(host, trained, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    changes = {"gradio_share": False, "gradio_server_port": port, "gradio_max_new_tokens": 4}
    options = ("--gradio", "--lora-model-dir", str(trained.out))
    pid = host.start(tmp_path, "inference", *options, **changes)
    try:
        client = until_ready(lambda: Client(f"http://127.0.0.1:{port}", verbose=False))
        assert client.predict("Repeat 1", api_name="/generate").startswith("Repeat 1")
    finally:
        os.kill(pid, signal.SIGKILL)
    assert FRESH not in (tmp_path / "log.txt").read_text()


def until_ready(connect, seconds: int = 120):
    """What `connect` returns as soon as it raises no error."""
    end = time.monotonic() + seconds
    while True:
        try:
            return connect()
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


@pytest.mark.works("Verbs", "`preprocess`")
def test_preprocessed_data_is_what_the_run_trains_on(host, tmp_path):
    changes = {"dataset_prepared_path": str(tmp_path / "prepared"), "max_steps": 1}
    run = host.run(tmp_path, "preprocess", **changes)
    assert run.code == 0, run.log[-4000:]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "prepared").rglob("*.arrow")}
    assert files
    host.train(tmp_path, **changes, save_steps=1)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "prepared").rglob("*.arrow")}
    assert after == files


@pytest.mark.works(
    "Verbs", "lm-eval", "as `alphalora lm-eval CONFIG`: the host's own verb cannot know the adapter"
)
def test_lm_eval_scores_the_adapter(host, trained, tmp_path):
    rows = [{"question": f"Repeat {i}", "choices": [" yes", " no"], "answer": 0} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "words",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(tmp_path / "rows.jsonl")}},
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "words.yaml").write_text(yaml.safe_dump(task))
    config = host.write(tmp_path, output_dir=str(trained.out), hub_model_id="nobody/nothing")
    config.write_text(config.read_text() + "lm_eval_tasks: [words]\n")
    run = host.command(
        tmp_path, "alphalora", "lm-eval", str(config), "--include_path", str(tmp_path)
    )
    assert run.code == 0, run.log[-4000:]
    assert f"'peft': '{trained.out}'" in run.log
    assert "|words|" in run.log


@pytest.mark.refused("Verbs", "`lm_eval_post_train`", "names `alphalora lm-eval`")
def test_lm_eval_after_training_is_refused_before_it(host, tmp_path):
    plugins = ["axolotl_alphalora.AlphaLoraPlugin", "axolotl.integrations.lm_eval.LMEvalPlugin"]
    run = host.run(tmp_path, "train", plugins=plugins, lm_eval_tasks=["words"])
    assert run.code != 0
    assert "`lm_eval_post_train`: it starts lm_eval in a process" in flat(run.log)
    assert "run `alphalora lm-eval config.yml`" in flat(run.log)


@pytest.mark.parametrize(
    "verb",
    [
        pytest.param("quantize", marks=pytest.mark.refused("Verbs", "`quantize`")),
        pytest.param("export", marks=pytest.mark.refused("Verbs", "`export`")),
        pytest.param("vllm-serve", marks=pytest.mark.refused("Verbs", "`vllm-serve`")),
    ],
)
def test_verbs_that_need_one_weight_per_layer_are_refused_by_name(host, trained, tmp_path, verb):
    run = host.run(tmp_path, verb, output_dir=str(trained.out))
    assert run.code != 0
    assert re.search(rf"`axolotl {verb}` \w+ a whole model.*no single weight", flat(run.log))


@pytest.mark.refused("Verbs", "`delinearize-llama4`", "by the host: the directory holds no model")
def test_delinearize_finds_no_model(host, trained, tmp_path):
    run = host.command(tmp_path, "delinearize-llama4", str(trained.out), str(tmp_path / "new"))
    assert run.code != 0
    assert "no file named model.safetensors" in flat(run.log)


@pytest.mark.works("Verbs", "config-schema", "as `alphalora config-schema`")
def test_the_schema_of_the_block_is_printed(host, tmp_path):
    run = host.command(tmp_path, "alphalora", "config-schema")
    schema = json.loads(run.log[run.log.index("\n{\n") :])
    assert schema["properties"]["top_k"]["default"] == 2
    assert set(schema["properties"]) == set(AlphaLoraConfigBlock.model_fields)


@pytest.mark.works("Verbs", "`merge-sharded-fsdp-weights`", "in bf16, to be renamed")
def test_an_adapter_saved_in_shards_becomes_one_file(host, trained, tmp_path):
    adapter = load_file(trained.out / "adapter_model.safetensors")
    shards = tmp_path / "out" / "checkpoint-1" / "pytorch_model_fsdp_0"
    checkpoint.save({"model": adapter}, checkpoint_id=shards, no_dist=True)
    run = host.run(tmp_path, "merge-sharded-fsdp-weights")
    assert run.code == 0, run.log[-4000:]
    merged = tmp_path / "out" / "merged"
    (merged / "model.safetensors").rename(merged / "adapter_model.safetensors")
    shutil.copy(trained.out / "adapter_config.json", merged)
    model = AutoPeftModelForCausalLM.from_pretrained(merged)
    loaded = {n: p for n, p in model.named_parameters() if "alphalora_" in n}
    assert len(loaded) == len(adapter)
    for name, tensor in adapter.items():
        assert loaded[f"{name}.default"].equal(tensor.bfloat16().float()), name


@pytest.mark.refused("Verbs", "`merge-lora`")
def test_merge_lora_is_refused_with_the_reason(host, trained, tmp_path):
    run = host.run(tmp_path, "merge-lora", "--lora-model-dir", str(trained.out))
    assert run.code != 0
    assert "merge_lora" in run.log and "no single" in flat(run.log)
    assert not (tmp_path / "out" / "merged").exists()


@pytest.mark.parametrize("key", ["lora_model_dir", "resume_from_checkpoint"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_r": 8}, "lora_r is 8 in the YAML and 4 in the adapter"),
        (
            {"alphalora": {"experts_per_block": 5}},
            "budget is total_experts 10 over 2 blocks .* total_experts 6",
        ),
        (
            {"alphalora": {"experts_per_block": 3, "top_k": 1}},
            "alphalora.top_k is 1 in the YAML and 2 in the adapter",
        ),
        (
            {
                "alphalora": {
                    "experts_per_block": 3,
                    "allocation": {"strategy": "alphalora", "estimator": "hill"},
                }
            },
            "allocation.estimator is hill in the YAML and xmin_peak in the adapter",
        ),
        (
            {"lora_target_linear": False, "lora_target_modules": ["q_proj"]},
            r"model.layers.0.mlp.down_proj has \d experts in the adapter and is no target",
        ),
    ],
)
def test_a_yaml_that_contradicts_a_saved_adapter_names_the_difference(
    host, trained, tmp_path, key, changes, message
):
    run = host.run(tmp_path, "train", **changes, **{key: str(trained.out / "checkpoint-4")})
    assert run.code != 0
    assert f"contradicts the adapter in {key}: {trained.out}/checkpoint-4" in flat(run.log)
    assert re.search(message, flat(run.log))
    assert "Loading weights" not in run.log, "it should fail before the model is loaded"


def test_training_goes_on_from_a_saved_adapter(host, trained, tmp_path):
    run = host.train(tmp_path, lora_model_dir=str(trained.out), max_steps=1, save_steps=1)
    first = [row["eval_loss"] for row in run.history(1) if "eval_loss" in row][0]
    last = [row["eval_loss"] for row in trained.history(4) if "eval_loss" in row][-1]
    assert first == pytest.approx(last, rel=1e-5)
    assert "AlphaLoRA: spectra" not in run.log


def test_another_methods_adapter_is_refused(host, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(host.workspace / "tiny")
    lora = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path / "lora")
    run = host.run(tmp_path, "train", lora_model_dir=str(tmp_path / "lora"))
    assert run.code != 0
    assert "holds a LORA adapter, not an AlphaLoRA one" in flat(run.log)


def test_a_directory_without_an_adapter_is_refused(host, tmp_path):
    run = host.run(tmp_path, "train", lora_model_dir=str(tmp_path / "nothing"))
    assert "has no readable adapter_config.json. The directory does not exist." in flat(run.log)
    assert run.code != 0


def test_a_plan_for_other_settings_is_refused(host, trained, tmp_path):
    plan = json.loads((trained.out / "adapter_config.json").read_text())["plan"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    block = {"plan": "plan.json"}
    run = host.run(tmp_path, "train", alphalora=block, lora_r=8)
    assert "alphalora.plan plan.json does not fit this run: the plan is for rank 4" in flat(run.log)
    assert "but lora_r is 8. Set `lora_r: 4`, or make the plan again" in flat(run.log)
    (tmp_path / "plan.json").write_text("{}")
    run = host.run(tmp_path, "train", alphalora=block)
    assert "plan.json: format is None" in flat(run.log)
    assert run.code != 0


def test_an_impossible_budget_comes_before_the_model_is_loaded(host, tmp_path):
    run = host.run(tmp_path, "train", alphalora={"total_experts": 1})
    assert run.code != 0
    assert "total_experts is 1, but the least that min_experts 1 allows is 2" in flat(run.log)
    assert "Loading weights" not in run.log


def test_other_adapters_are_left_alone(host, tmp_path):
    kernels = dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False)
    run = host.train(tmp_path, adapter="lora", alphalora=..., max_steps=1, save_steps=1, **kernels)
    assert run.spied["bases"] == {"Linear": 14}
    config = json.loads((run.out / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert "AlphaLoRA" not in run.log
