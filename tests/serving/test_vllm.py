"""A real vLLM serves routed adapters as PEFT does: SmolLM2-135M, fp32, on the CPU.

In an environment of its own, which `.ci/vllm` makes.
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.quickstart.rows import make_rows
from benchmarks.common import smollm2
from helpers.vllm_engine import NEW_TOKENS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="needs vLLM: .ci/vllm has it"
)
ENGINE = Path(__file__).parents[1] / "helpers" / "vllm_engine.py"
LIMIT = 1e-4
"""How far log probabilities may be apart."""
ADAPTERS = {
    "plain": {},
    "fine": {"segments": 2, "router_rank": 8, "share_a": True, "top_k": 0.5},
    "top-1": {"top_k": 1, "use_rslora": True},
}
MODES = {
    "eager": {"enforce_eager": True},
    "compiled": {},
    "transformers": {"enforce_eager": True, "model_impl": "transformers"},
}


def counts(model):
    """Experts of every linear layer: other numbers in each, none in one block, one in another."""
    names = [n for n, m in model.named_modules() if n.endswith("_proj")]
    blocks = {name: int(name.split(".")[2]) for name in names}
    found = {name: 1 + (blocks[name] + i % 7) % 5 for i, name in enumerate(names)}
    for name, block in blocks.items():
        if block in (3, 4):
            found[name] = 4 - block
        if block > 20:
            found[name] = 3  # in all of a block, as in most plans
    return found


class Base:
    """The base model, eight prompts, and PEFT's side of things."""

    def __init__(self, folder):
        self.folder = folder
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.texts = [f"{r['instruction']}\n{r['input']}\n" for r in make_rows()[1][:8]]
        self.prompts = [self.tokenizer(text).input_ids for text in self.texts]

    def load(self):
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()

    def adapter(self, folder, seed=0, **options):
        """Save an adapter with random weights that changes the base's answers."""
        model = self.load()
        torch.manual_seed(seed)
        config = AlphaLoraConfig(
            r=8, num_experts=counts(model), rank_pattern={"model.layers.9.mlp.up_proj": 4},
            init_weights=False, task_type="CAUSAL_LM", **{"lora_alpha": 16} | options,
        )  # fmt: skip
        config.base_model_name_or_path = str(self.folder)
        adapted = get_peft_model(model, config)
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "alphalora_B" in name:
                    weight *= 0.15
        adapted.save_pretrained(folder)

    def peft(self, folder):
        """Greedy continuations of the prompts, and the log probabilities of their tokens."""
        model = self.load()
        return self._answers(PeftModel.from_pretrained(model, folder) if folder else model)

    def _answers(self, model):
        greedy, scores = [], []
        for prompt in self.prompts:
            ids = torch.tensor([prompt])
            with torch.no_grad():
                row = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                    min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, eos_token_id=-1,
                )  # fmt: skip
                logits = model(row).logits[0].log_softmax(-1)
            answer = row[0, len(prompt) :]
            greedy.append(answer.tolist())
            at = torch.arange(len(prompt), row.shape[1])
            scores.append(logits[at - 1, answer].tolist())
        return greedy, scores


@pytest.fixture(scope="session")
def base():
    return Base(os.environ.get("ALPHALORA_SMOLLM2") or smollm2())


@pytest.fixture(scope="session")
def trained(base, tmp_path_factory):
    """Adapter to its directory and what PEFT answers with it."""
    root, made = tmp_path_factory.mktemp("adapters"), {}

    def of(name):
        if name not in made:
            if name != "base":
                base.adapter(root / name, **ADAPTERS[name])
            made[name] = root / name, *base.peft(root / name if name != "base" else None)
        return made[name]

    return of


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """For vLLM on two cores that others use; nothing compiled is left from elsewhere."""
    return os.environ | {
        "VLLM_CACHE_ROOT": str(tmp_path_factory.mktemp("vllm")),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "OMP_NUM_THREADS": "1",
    }


def llm(base, folder, **options):
    return {
        "model": str(base.folder),
        "load_format": "alphalora",
        "additional_config": {"alphalora": str(folder)},
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,  # a prompt is read in pieces
        "enable_chunked_prefill": True,
        "enable_prefix_caching": True,
    } | options


@pytest.fixture(scope="session")
def ask(base, environment, fresh_process):
    """What a vLLM with these options answers and scores."""

    def asked(options, answers, check=True):
        text = json.dumps({"llm": options, "prompts": base.prompts, "answers": answers})
        done = fresh_process(ENGINE, text, env=environment, check=check)
        return json.loads(done.stdout.splitlines()[-1]) if check else done.stdout + done.stderr

    return asked


def same(got, greedy, scores):
    assert got["greedy"] == greedy
    far = max(
        abs(a - b)
        for one, two in zip(got["scores"], scores, strict=True)
        for a, b in zip(one, two, strict=True)
    )
    print("largest difference of a log probability:", far)
    assert far < LIMIT


def test_the_adapters_change_what_is_answered(trained):
    """Or the other tests would not see whether the adapter is served."""
    _, plain, _ = trained("base")
    for name in ADAPTERS:
        differing = sum(a != b for a, b in zip(trained(name)[1], plain, strict=True))
        assert differing >= 6, name


@pytest.mark.parametrize(
    ("adapter", "mode"), [*(("plain", m) for m in MODES), ("fine", "compiled"), ("top-1", "eager")]
)
def test_it_answers_as_peft_does(base, trained, ask, adapter, mode):
    folder, greedy, scores = trained(adapter)
    same(ask(llm(base, folder, **MODES[mode]), greedy), greedy, scores)
