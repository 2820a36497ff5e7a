"""From a run to a plain LoRA by `axolotl alphalora export`, and from there to Axolotl's merge."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

LORA = {"adapter": "lora", "alphalora": ..., "plugins": ..., "lora_dropout": 0.0}


@pytest.fixture(scope="module")
def trained(host, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return host.train(folder, max_steps=8, save_steps=8, learning_rate=0.02)


@pytest.fixture(scope="module")
def exported(host, trained):
    """By the run's own YAML: its training rows calibrate, its validation rows measure."""
    argv = ["alphalora", "export", "out", "--output", "lora", "--data", "config.yml", "--json"]
    run = host.command(trained.folder, *argv, "--samples", "16")
    assert run.code == 0, run.log[-4000:]
    return run


def test_a_yaml_of_several_gpus_that_continues_an_adapter_gives_its_rows(host, trained, tmp_path):
    """One process reads them; what the adapter would say need not stand in the YAML."""
    left_out = dict.fromkeys(("lora_r", "lora_alpha", "lora_target_linear", "lora_dropout"), ...)
    zero = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}
    (tmp_path / "zero3.json").write_text(json.dumps(zero))
    config = host.write(
        tmp_path, deepspeed="zero3.json", lora_model_dir=str(trained.out), **left_out
    )
    argv = ["alphalora", "inspect", str(trained.out), "--data", str(config), "--json"]
    run = host.command(tmp_path, *argv, "--samples", "4")
    assert run.code == 0, run.log[-4000:]
    found = json.loads(run.log[run.log.index('{\n  "format"') :])
    assert found["data"]["rows"] == {"data.jsonl": 4}


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def base(host):
    return AutoModelForCausalLM.from_pretrained(host.workspace / "tiny")


@pytest.mark.works("Seeing and exporting", "`axolotl alphalora export DIR --data CONFIG.yml`")
def test_the_run_s_own_rows_calibrate_and_measure(host, exported):
    record = json.loads((exported.folder / "lora" / "alphalora_export.json").read_text())
    assert exported.log.rstrip().endswith(json.dumps(record, indent=2))
    assert record["measured_on"] == "the run's validation rows"
    assert record["calibration"]["rows"] == 16
    assert record["price"]["rows"] == 4  # val_set_size is a tenth of 40 rows
    assert record["price"]["loss_routed"] < record["price"]["loss_base"]
    assert record["price"]["kl"] < 0.1


def test_test_datasets_are_the_validation_rows_and_no_lock_stays_behind(host, trained, tmp_path):
    lines = (host.workspace / "data.jsonl").read_text().splitlines()
    (tmp_path / "test.jsonl").write_text("\n".join(lines[:3]) + "\n")
    entry = {"path": "test.jsonl", "ds_type": "json", "type": "alpaca", "split": "train"}
    own = {"val_set_size": 0, "dataset_prepared_path": "prepared", "test_datasets": [entry]}
    config = str(host.write(tmp_path, **own))
    argv = ["alphalora", "export", str(trained.out), "--output", "lora", "--data", config]
    run = host.command(tmp_path, *argv, "--samples", "8")
    assert run.code == 0, run.log[-4000:]
    record = json.loads((tmp_path / "lora" / "alphalora_export.json").read_text())
    assert record["measured_on"] == "the run's validation rows"
    assert record["price"]["rows"] == 3
    left = {path.name for path in (tmp_path / "prepared").iterdir()}
    assert not left & {"datasets_ready.flag", "process_counter.txt"}


@pytest.mark.works("Seeing and exporting", "`axolotl alphalora inspect DIR --data CONFIG.yml`")
def test_the_routers_are_watched_on_the_run_s_own_rows(host, trained):
    argv = ["alphalora", "inspect", "out", "--data", "config.yml", "--json", "--samples", "8"]
    run = host.command(trained.folder, *argv)
    assert run.code == 0, run.log[-4000:]
    found = json.loads(run.log[run.log.index('{\n  "format"') :])
    assert found["data"]["rows"] == {"data.jsonl": 8}
    assert found["routing"]["routers"] == 14
    for module in found["modules"]:
        assert module["usage"]["all"]["tokens"] == found["data"]["tokens"]
        assert sum(module["usage"]["all"]["token_share"]) == pytest.approx(1)


@pytest.mark.works("Seeing and exporting", "Axolotl's `merge-lora` of the exported LoRA")
@pytest.mark.parametrize("method", ["memory_efficient", "legacy"])
def test_the_host_merges_the_export(host, exported, tmp_path, method):
    lora = exported.folder / "lora"
    run = host.run(
        tmp_path, "merge-lora", "--lora-model-dir", str(lora), merge_method=method, **LORA
    )
    assert run.code == 0, run.log[-4000:]
    ids = torch.randint(4, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    unmerged = logits(PeftModel.from_pretrained(base(host), lora), ids)
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged"), ids)
    assert (unmerged - logits(base(host), ids)).abs().max() > 0.1
    torch.testing.assert_close(merged.float(), unmerged, rtol=0, atol=1e-3)


def test_a_price_above_the_limit_is_an_error_and_leaves_nothing(host, trained, tmp_path):
    argv = ["alphalora", "export", str(trained.out), "--output", "lora", "--max-kl", "0"]
    rows = host.workspace / "data.jsonl"
    run = host.command(tmp_path, *argv, "--data", str(rows), "--samples", "4")
    assert run.code != 0
    assert "nothing was written" in run.log
    assert {path.name for path in tmp_path.iterdir()} == {"log.txt"}
