"""Every trainer of the host: it trains, and its load-balancing loss has the right size."""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from helpers.first_step import assert_routers_got_the_balance, seen, token_shares

COEFFICIENT = 0.5
# With as many experts as each token gets, the loss is constant.
BLOCK = {"allocation": "uniform", "experts_per_block": 3, "aux_loss_coef": COEFFICIENT}
HALVES = [0.5, 0.5]

REWARDS = """
def length(completions, **kwargs):
    return [float(len(text) % 7) for text in completions]


def spread(completions, **kwargs):
    return [float(len(set(text)) % 5) for text in completions]


def prompts(cfg, **kwargs):
    return lambda row, tokenizer=None: {"prompt": row["prompt"]}
"""

ROWS = {
    "pairs": lambda i: {"prompt": f"Say {i}", "chosen": f"yes {i}" * (1 + i % 3), "rejected": "no"},
    "kto": lambda i: {"prompt": f"Say {i}", "completion": f"yes {i}", "label": bool(i % 2)},
    "prompts": lambda i: {"prompt": f"Say {i}"},
    "reward": lambda i: {"system": "", "input": f"Say {i}", "chosen": f"y {i}", "rejected": "no"},
    "steps": lambda i: {
        "prompt": f"Say {i}",
        "completions": [f"first {i}", "second"],
        "labels": [True, bool(i % 2)],
    },
}


def fields(**names) -> dict:
    """A dataset type of the host's for preference data: `field_x: x`, `x_format: '{x}'`."""
    named = {f"field_{key}": key for key in names}
    return named | {f"{key}_format": f"{{{key}}}" for key, shown in names.items() if shown}


PAIRS = ("pairs", fields(prompt=True, chosen=True, rejected=True))
UNPAIRED = ("kto", fields(prompt=True, completion=True, label=False))
ONLINE = ("prompts", "rewards_of_tests.prompts")

TRL = {"beta": 0.1, "num_generations": 2, "max_completion_length": 6, "use_vllm": False}
LENGTH = {"reward_funcs": ["rewards_of_tests.length"]}
BOTH = {"reward_funcs": ["rewards_of_tests.length", "rewards_of_tests.spread"]}

TRAINERS = {
    "dpo": (PAIRS, {"rl": "dpo"}),
    "ipo": (PAIRS, {"rl": "ipo"}),
    "kto": (UNPAIRED, {"rl": "kto", "remove_unused_columns": False}),
    "orpo": (PAIRS, {"rl": "orpo"}),
    "simpo": (PAIRS, {"rl": "simpo", "rl_beta": 0.1, "cpo_alpha": 0.5, "simpo_gamma": 0.5}),
    "grpo": (ONLINE, {"rl": "grpo", "trl": TRL | LENGTH, "val_set_size": 0, "eval_steps": ...}),
    "gdpo": (ONLINE, {"rl": "gdpo", "trl": TRL | BOTH, "val_set_size": 0, "eval_steps": ...}),
    "reward": (
        ("reward", "bradley_terry.chat_template"),
        {
            "reward_model": True,
            "model_type": "AutoModelForSequenceClassification",
            "num_labels": 1,
            "chat_template": "chatml",
            "remove_unused_columns": False,
        },
    ),
    "process reward": (
        ("steps", "stepwise_supervised"),
        {
            "process_reward_model": True,
            "model_type": "AutoModelForTokenClassification",
            "num_labels": 2,
            "remove_unused_columns": False,
        },
    ),
}
WITH_REFERENCE = ("dpo", "ipo", "kto", "grpo", "gdpo")


@pytest.fixture(scope="module")
def rewards(host):
    """The reward functions, on the path of the host's processes."""
    return host.importable("rewards_of_tests", REWARDS)


def train(host, folder, name, **more):
    (rows, kind), changes = TRAINERS[name]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(ROWS[rows](i)) + "\n" for i in range(16)))
    dataset = {"path": str(file), "ds_type": "json", "split": "train", "type": kind}
    settings = {
        "datasets": [dataset],
        "dataset_prepared_path": str(folder / "prepared"),
        "val_set_size": 0.25,
        "max_steps": 2,
        "max_grad_norm": 1e9,
        "alphalora": BLOCK,
    }
    return host.train(folder, **(settings | changes | more))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("dpo", marks=pytest.mark.works("Trainers", "`rl: dpo`")),
        pytest.param("ipo", marks=pytest.mark.works("Trainers", "`rl: ipo`")),
        pytest.param("kto", marks=pytest.mark.works("Trainers", "`rl: kto`")),
        pytest.param("orpo", marks=pytest.mark.works("Trainers", "`rl: orpo`")),
        pytest.param("simpo", marks=pytest.mark.works("Trainers", "`rl: simpo`")),
        pytest.param("grpo", marks=pytest.mark.works("Trainers", "`rl: grpo`, without vLLM")),
        pytest.param("gdpo", marks=pytest.mark.works("Trainers", "`rl: gdpo`, without vLLM")),
        pytest.param("reward", marks=pytest.mark.works("Trainers", "`reward_model`")),
        pytest.param(
            "process reward", marks=pytest.mark.works("Trainers", "`process_reward_model`")
        ),
    ],
)
def test_each_trainer_trains_with_a_balance_of_the_right_size(host, rewards, tmp_path, name):
    run = train(host, tmp_path, name)
    history = run.history(2)
    training = [row for row in history if "loss" in row]
    evaluation = [row for row in history if "eval_loss" in row]
    assert len(training) == 2
    # Two blocks: 2 at perfect balance. A reference pass would come to 0, as it has no routers.
    assert all(2 - 1e-3 < row["alphalora/aux_loss"] < 6 for row in training)
    if "eval_steps" not in TRAINERS[name][1]:
        assert evaluation
    assert all(2 - 1e-3 < row["eval_alphalora/aux_loss"] < 6 for row in evaluation)

    step = seen(run)
    weights = token_shares(step["passes"], shift=0) if name == "process reward" else HALVES
    assert_routers_got_the_balance(run, host.workspace / "tiny", COEFFICIENT, weights)
    assert (step["references"] > 0) == (name in WITH_REFERENCE)

    saved = load_file(run.out / "adapter_model.safetensors")
    assert any(w.abs().sum() > 0 for n, w in saved.items() if "alphalora_B" in n)
    model = opened(host, run, name)
    loaded = {n: p for n, p in model.named_parameters() if "alphalora_" in n}
    assert len(loaded) == sum("alphalora_" in n for n in saved)
    for key, tensor in saved.items():
        if "alphalora_" in key:
            assert loaded[key + ".default"].equal(tensor), key


@pytest.mark.parametrize(
    ("name", "head"), [("reward", "score"), ("grpo", "lm_head"), ("dpo", "lm_head")]
)
def test_a_head_trains_in_full_on_a_quantised_base(host, rewards, tmp_path, name, head):
    """TRL casts what trains to bf16, which no fp32 input goes through without autocast."""
    whole = {} if name == "reward" else {"lora_modules_to_save": [head]}
    run = train(host, tmp_path, name, load_in_4bit=True, **whole)
    saved = load_file(run.out / "adapter_model.safetensors")
    assert any(head in key for key in saved)
    assert {value.dtype for value in saved.values()} == {torch.float32}


def opened(host, run, name):
    """The final adapter, by plain PEFT."""
    heads = {
        "reward": AutoModelForSequenceClassification,
        "process reward": AutoModelForTokenClassification,
    }
    if name not in heads:
        return AutoPeftModelForCausalLM.from_pretrained(run.out)
    labels = 1 if name == "reward" else 2
    base = heads[name].from_pretrained(host.workspace / "tiny", num_labels=labels)
    return PeftModel.from_pretrained(base, run.out)


@pytest.mark.refused("Trainers", "`rl: ebft`")
def test_ebft_is_refused(host, tmp_path):
    run = host.run(tmp_path, "train", rl="ebft", ebft={"mode": "strided"})
    assert run.code != 0
    assert "`rl`: EBFT's embeddings" in run.log


@pytest.mark.refused("Trainers", "GRPO with vLLM")
def test_grpo_with_vllm_is_refused(host, tmp_path):
    run = host.run(tmp_path, "train", rl="grpo", trl={"use_vllm": True})
    assert run.code != 0
    assert "`trl.use_vllm`: vLLM gets the adapter merged or as plain LoRA" in run.log
