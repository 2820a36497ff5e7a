"""Options that save memory or time: the same run, and learning rates where they belong."""

import json
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import axolotl_alphalora.adapter  # noqa: F401
from helpers.first_step import seen

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
PLUGINS = ["axolotl_alphalora.AlphaLoraPlugin", "spy.SpyPlugin"]


def run_once(host, folder, **changes):
    settings = {"max_steps": 2, "save_steps": 2, "val_set_size": 0, "eval_steps": ...}
    settings |= {"lora_dropout": 0.0}
    return host.train(folder, **(settings | changes))


def weights(run):
    return load_file(run.out / "adapter_model.safetensors")


# A step of SGD moves a weight by its gradient, so rounding moves it by no more than rounding.
SGD = {"optimizer": "sgd", "learning_rate": 1.0}


@pytest.fixture(scope="module")
def plain(host, tmp_path_factory):
    return run_once(host, tmp_path_factory.mktemp("plain"), **SGD)


def assert_same(run, plain):
    """Two steps moved every tensor as in the plain run."""
    start, got, want = seen(plain)["start"], weights(run), weights(plain)
    assert got.keys() == want.keys()
    for name in want:
        moved = (want[name] - start[f"{name}.default"]).norm()
        # Gradients agree to float32's sums, a weight to the spacing of floats at each step.
        bound = 1e-4 * moved + 2 * torch.finfo(torch.float32).eps * want[name].norm()
        assert moved > 0 and (got[name] - want[name]).norm() < bound, name
    for a, b in zip(run.history(2), plain.history(2), strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
            assert a["alphalora/aux_loss"] == pytest.approx(b["alphalora/aux_loss"], rel=1e-3)


CHECKPOINTING = {"gradient_checkpointing": True}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            CHECKPOINTING | {"activation_offloading": "legacy"},
            marks=pytest.mark.works("Memory and speed", "`activation_offloading: legacy`"),
        ),
        pytest.param(
            CHECKPOINTING | {"activation_offloading": "hidden_states"},
            marks=pytest.mark.works("Memory and speed", "`activation_offloading: hidden_states`"),
        ),
        pytest.param(
            CHECKPOINTING | {"selective_checkpointing": True},
            marks=pytest.mark.works("Memory and speed", "`selective_checkpointing`"),
        ),
        pytest.param(
            {"layer_offloading": True},
            marks=pytest.mark.works("Memory and speed", "`layer_offloading`"),
        ),
        pytest.param(
            {"chunked_cross_entropy": True},
            marks=pytest.mark.works("Memory and speed", "`chunked_cross_entropy`"),
        ),
        pytest.param(
            {"attn_implementation": "eager"},
            marks=pytest.mark.works("Memory and speed", "sdpa and eager attention"),
        ),
        pytest.param(
            CHECKPOINTING | {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
            marks=pytest.mark.works("Memory and speed", "gradient checkpointing, reentrant"),
        ),
        pytest.param(
            CHECKPOINTING | {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
            marks=pytest.mark.works("Memory and speed", "gradient checkpointing, not reentrant"),
        ),
    ],
    ids=str,
)
def test_the_run_is_the_same_with(host, plain, tmp_path, changes):
    run = run_once(host, tmp_path, **SGD, **changes)
    assert run.spied["checkpointing"] == ("gradient_checkpointing" in changes)
    assert_same(run, plain)


@pytest.mark.works("Memory and speed", "`torch_compile`, also with checkpointing", "aot_eager")
def test_a_compiled_run_is_the_same(host, plain, tmp_path):
    run = run_once(
        host,
        tmp_path,
        torch_compile=True,
        torch_compile_backend="aot_eager",
        **SGD,
        **CHECKPOINTING,
    )
    assert_same(run, plain)


@pytest.mark.works("Memory and speed", "`neftune_noise_alpha`")
def test_noise_on_the_embeddings_reaches_the_routers(host, plain, tmp_path):
    run = run_once(host, tmp_path, neftune_noise_alpha=5.0)
    noisy, calm = ([r["loss"] for r in each.history(2) if "loss" in r] for each in (run, plain))
    assert noisy[0] != calm[0]
    assert noisy[0] == pytest.approx(calm[0], rel=0.1)


@pytest.mark.works(
    "Memory and speed",
    "optimizers",
    "`adamw_torch`, `adamw_8bit`, `paged_adamw_8bit`, `schedule_free_adamw`, `muon`, `adafactor`; "
    "others are the host's and torch's own",
)
@pytest.mark.parametrize(
    "optimizer", ["adamw_8bit", "paged_adamw_8bit", "schedule_free_adamw", "muon", "adafactor"]
)
def test_optimizers_train_every_expert_and_router(host, tmp_path, optimizer):
    run = run_once(host, tmp_path, optimizer=optimizer)
    start, end = seen(run)["start"], weights(run)
    assert any("alphalora_router" in name for name in end)
    for name, tensor in end.items():
        assert not tensor.equal(start[f"{name}.default"]), name


def learning_rates(run) -> dict[str, set[float]]:
    """The learning rates that each kind of parameter has in the optimizer."""
    found: dict[str, set[float]] = {}
    for group in seen(run)["groups"]:
        for name in group["names"]:
            kind = name.split(".")[-2] if "alphalora_" in name else "saved module"
            found.setdefault(kind, set()).add(round(group["lr"], 9))
    return found


A, B, ROUTER = "alphalora_A", "alphalora_B", "alphalora_router"


@pytest.mark.works("Memory and speed", "`loraplus_lr_ratio`, with `embedding_lr` too")
@pytest.mark.parametrize("optimizer", ["adamw_torch", "paged_adamw_8bit", "schedule_free_adamw"])
def test_lora_plus_raises_the_rate_of_b_alone(host, tmp_path, optimizer):
    run = run_once(
        host,
        tmp_path,
        max_steps=1,
        save_steps=1,
        optimizer=optimizer,
        learning_rate=0.001,
        loraplus_lr_ratio=16.0,
        embedding_lr=0.0005,
        lora_modules_to_save=["embed_tokens"],
    )
    assert learning_rates(run) == {
        A: {0.001},
        ROUTER: {0.001},
        B: {0.016},
        "saved module": {0.0005},
    }


@pytest.mark.works("Memory and speed", "`alphalora.router_lr_ratio`, also on resume")
def test_routers_have_a_learning_rate_of_their_own_that_survives_a_resume(host, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir()
    part.mkdir()
    block = {"experts_per_block": 3, "router_lr_ratio": 0.1}
    changes = {"alphalora": block, "loraplus_lr_ratio": 4.0, "learning_rate": 0.001}
    changes |= {"max_steps": 2, "save_steps": 1}
    full = run_once(host, whole, **changes)
    shutil.copytree(full.out / "checkpoint-1", part / "out" / "checkpoint-1")
    resumed = run_once(host, part, auto_resume_from_checkpoints=True, **changes)
    assert learning_rates(resumed) == {A: {0.001}, B: {0.004}, ROUTER: {0.0001}}
    for name, tensor in weights(full).items():
        assert weights(resumed)[name].equal(tensor), name


@pytest.mark.refused("Memory and speed", "learning-rate ratios where DeepSpeed names the optimizer")
def test_learning_rates_that_deepspeed_would_ignore_are_refused(host, tmp_path):
    (tmp_path / "ds.json").write_text(json.dumps({"optimizer": {"type": "AdamW"}}))
    run = host.run(tmp_path, "train", deepspeed="ds.json", loraplus_lr_ratio=4.0)
    assert run.code != 0
    assert "do nothing where the DeepSpeed configuration names the optimizer" in run.log


@pytest.mark.works("Memory and speed", "new tokens with `lora_modules_to_save`")
def test_new_tokens_are_trained_saved_and_opened(host, tmp_path):
    run = run_once(
        host,
        tmp_path,
        tokens=["<new1>", "<new2>"],
        lora_modules_to_save=["embed_tokens", "lm_head"],
    )
    saved = weights(run)
    tokenizer = AutoTokenizer.from_pretrained(run.out)
    assert tokenizer.convert_tokens_to_ids("<new2>") == len(tokenizer) - 1
    base = AutoModelForCausalLM.from_pretrained(host.workspace / "tiny")
    base.resize_token_embeddings(len(tokenizer))
    model = PeftModel.from_pretrained(base, run.out)
    for key in ("embed_tokens", "lm_head"):
        name = next(n for n in saved if key in n)
        assert saved[name].shape[0] == len(tokenizer)
        loaded = dict(model.named_parameters())
        trained = next(p for n, p in loaded.items() if key in n and "modules_to_save" in n)
        assert trained.equal(saved[name])


@pytest.mark.refused("Memory and speed", "new tokens without `lora_modules_to_save`", "by the host")
def test_new_tokens_without_their_embeddings_are_refused(host, tmp_path):
    run = host.run(tmp_path, "train", tokens=["<new1>"])
    assert run.code != 0
    assert "`lora_modules_to_save` not properly set when adding new tokens" in run.log


@pytest.mark.works("Memory and speed", "tied embeddings", "`lora_modules_to_save` unties a copy")
def test_tied_embeddings_stay_tied_under_the_adapter(host, tmp_path):
    base = tmp_path / "tied"
    shutil.copytree(host.workspace / "tiny", base)
    config = AutoConfig.from_pretrained(base, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    run = run_once(host, tmp_path, base_model=str(base))
    opened = AutoPeftModelForCausalLM.from_pretrained(run.out)
    assert opened.get_output_embeddings().weight is opened.get_input_embeddings().weight
    assert not any("embed" in name or "lm_head" in name for name in weights(run))


@pytest.mark.works("Memory and speed", "`peft_autocast_adapter_dtype: false`")
@pytest.mark.parametrize("autocast", [True, False])
def test_adapter_weights_are_fp32_unless_asked_otherwise(host, tmp_path, autocast):
    run = run_once(
        host,
        tmp_path,
        peft_autocast_adapter_dtype=autocast,
        float16=True,
        max_steps=1,
        save_steps=1,
    )
    assert run.spied["trainable"] == ["torch.float32" if autocast else "torch.float16"]


@cuda
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            CHECKPOINTING | {"activation_offloading": True},
            marks=pytest.mark.untested("Memory and speed", "`activation_offloading: true`", "CUDA"),
        ),
        pytest.param(
            CHECKPOINTING | {"activation_offloading": "disk"},
            marks=pytest.mark.untested("Memory and speed", "`activation_offloading: disk`", "CUDA"),
        ),
        pytest.param(
            {"attn_implementation": "flex_attention"},
            marks=pytest.mark.untested(
                "Memory and speed", "flex attention", "its backward needs CUDA"
            ),
        ),
        pytest.param(
            {"attn_implementation": "flash_attention_2", "bf16": True},
            marks=pytest.mark.untested("Memory and speed", "flash attention", "CUDA, flash-attn"),
        ),
        pytest.param(
            {
                "plugins": [*PLUGINS, "axolotl.integrations.liger.LigerPlugin"],
                "liger_rope": True,
                "liger_rms_norm": True,
                "liger_glu_activation": True,
                "liger_fused_linear_cross_entropy": True,
            },
            marks=pytest.mark.untested("Memory and speed", "Liger", "its kernels need CUDA"),
        ),
        pytest.param(
            {
                "plugins": [
                    *PLUGINS,
                    "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin",
                ]
            },
            marks=pytest.mark.untested(
                "Memory and speed", "cut-cross-entropy", "CUDA, and a package from its repository"
            ),
        ),
    ],
    ids=str,
)
def test_a_run_on_a_gpu_comes_near_the_plain_one(host, plain, tmp_path, changes):
    run = run_once(host, tmp_path, **SGD, **changes)
    for a, b in zip(run.history(2), plain.history(2), strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=0.02)
