"""A real vLLM serves routed adapters as PEFT does: SmolLM2-135M, fp32, on the CPU.

In an environment of its own, which `.ci/vllm` makes.
"""

import copy
import importlib.util
import json
import os
import re
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
from safetensors.torch import save_file
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
        train, held_out = make_rows()
        shown = [f"{r['instruction']}\n{r['input']}\n" for r in [*train[:8], *held_out[:8]]]
        self.texts = [
            f"{text}{row['output']}\n\n{asked}"
            for text, row, asked in zip(shown[:8], train[:8], shown[8:], strict=True)
        ]
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
                    weight *= 0.5
        adapted.save_pretrained(folder)

    def peft(self, folder, model=None):
        """Greedy continuations of the prompts, and the log probabilities of their tokens."""
        model = model or self.load()
        model = PeftModel.from_pretrained(model, folder) if folder else model
        greedy = []
        for prompt in self.prompts:
            ids = torch.tensor([prompt])
            with torch.no_grad():
                row = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                    min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, eos_token_id=-1,
                )  # fmt: skip
            greedy.append(row[0, len(prompt) :].tolist())
        return greedy, self.scores(model, greedy)

    def scores(self, model, answers):
        """Log probabilities of the tokens of answers to the prompts."""
        found = []
        for prompt, answer in zip(self.prompts, answers, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + answer])).logits[0].float().log_softmax(-1)
            at = torch.arange(len(prompt), len(prompt) + len(answer))
            found.append(logits[at - 1, torch.tensor(answer)].tolist())
        return found


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
        "block_size": 32,  # of a prefix
    } | options


@pytest.fixture(scope="session")
def ask(base, environment, fresh_process, tmp_path_factory):
    """What a vLLM with these options answers and scores; its words where it must not start."""

    def asked(options, answers, fails=False):
        files = [tmp_path_factory.mktemp("ask") / name for name in ("asked", "answered")]
        files[0].write_text(
            json.dumps({"llm": options, "prompts": base.prompts, "answers": answers})
        )
        done = fresh_process(ENGINE, *files, env=environment, check=not fails)
        assert fails == (done.returncode != 0)
        return done.stdout + done.stderr if fails else json.loads(files[1].read_text())

    return asked


def same(got, greedy, scores):
    assert got["greedy"] == got["again"] == greedy
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
        assert differing >= 4, name


@pytest.mark.untested(
    "Serving", "a real vLLM beside PEFT, eager and compiled", "in CI; `.ci/vllm` runs it"
)
@pytest.mark.parametrize(
    ("adapter", "mode"), [*(("plain", m) for m in MODES), ("fine", "compiled"), ("top-1", "eager")]
)
def test_it_answers_as_peft_does(base, trained, ask, adapter, mode):
    folder, greedy, scores = trained(adapter)
    same(ask(llm(base, folder, **MODES[mode]), greedy), greedy, scores)


def test_an_adapter_of_another_shape_in_the_same_place_is_not_given_the_cached_graph(
    base, trained, ask, tmp_path
):
    folder = tmp_path / "adapter"
    for name in ("plain", "fine"):
        own, greedy, scores = trained(name)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(own, folder)
        same(ask(llm(base, folder), greedy), greedy, scores)


@pytest.mark.untested("Serving", "tensor parallelism in a real vLLM", "in CI; `.ci/vllm` runs it")
def test_three_processes_share_the_work(base, trained, ask):
    """Heads, rows of B and input features divided by three; gates agreed on over gloo."""
    folder, greedy, scores = trained("fine")
    options = {"tensor_parallel_size": 3, "distributed_executor_backend": "mp"}
    same(ask(llm(base, folder, enforce_eager=True, **options), greedy), greedy, scores)


def test_other_loras_beside_it_are_refused(base, trained, ask):
    folder, greedy, _ = trained("plain")
    words = ask(llm(base, folder, enforce_eager=True, enable_lora=True), greedy, fails=True)
    assert "--enable-lora would add other LoRAs" in words


def quantise(model, folder):
    """Write a model as GPTQ does, 4 bits in groups of 32, and leave in it what that means."""
    group, tensors = 32, {}
    for name, module in model.named_modules():
        if not name.endswith("_proj"):
            continue
        groups = module.weight.data.T.unflatten(0, (-1, group))  # [in / group, group, out]
        scales = (groups.abs().amax(1) / 7).clamp_min(1e-6).to(torch.bfloat16)
        levels = (groups / scales.unsqueeze(1)).round().clamp(-8, 7).to(torch.int32)
        module.weight.data = (levels * scales.unsqueeze(1)).flatten(0, 1).T.float().contiguous()
        bits = (levels.flatten(0, 1) + 8).unflatten(0, (-1, 8))
        shifts = torch.arange(0, 32, 4, dtype=torch.int32)[:, None]
        into, out = module.in_features, module.out_features
        tensors |= {
            f"{name}.qweight": (bits << shifts).sum(1, dtype=torch.int32),
            f"{name}.qzeros": torch.full((into // group, out // 8), 0x77777777, dtype=torch.int32),
            f"{name}.scales": scales,
            f"{name}.g_idx": torch.arange(into, dtype=torch.int32) // group,
        }
    for name, tensor in model.state_dict().items():
        if "_proj." not in name and name != "lm_head.weight":
            tensors[name] = tensor.to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.untested("Serving", "GPTQ bases in vLLM (4 bits)", "in CI; `.ci/vllm` runs it")
def test_a_quantised_base_keeps_its_own_product(base, ask, tmp_path):
    """In bfloat16, which its kernel wants: the adapter adds little to the base's own error, which
    is far below what the adapter changes."""
    base.adapter(folder := tmp_path / "adapter", lora_alpha=64)  # more than bfloat16 loses
    for file in Path(base.folder).iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True,
        "lm_head": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    quantise(model := base.load(), tmp_path)
    greedy, scores = base.peft(folder, copy.deepcopy(model))
    extra = {"alphalora": str(folder), "alphalora_any_base": True}
    options = {"model": str(tmp_path), "dtype": "bfloat16", "enforce_eager": True}
    routed = ask(llm(base, folder, additional_config=extra, **options), greedy)
    alone = ask(llm(base, folder, load_format="auto", additional_config={}, **options), greedy)

    own = base.scores(model, greedy)  # the base's, in fp32

    def distance(found, wanted):
        pairs = zip(sum(found, []), sum(wanted, []), strict=True)
        return sum(abs(a - b) for a, b in pairs) / len(sum(wanted, []))

    effect, error = distance(own, scores), distance(alone["scores"], own)
    print("the adapter's effect, the base's own error:", effect, error)
    print("the routed adapter's error:", found := distance(routed["scores"], scores))
    assert found < 2 * error < effect


@pytest.fixture
def server(trained, environment):
    """`alphalora serve`: the address of a vLLM, and what it prints."""
    folder = trained("plain")[0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "alphalora", "serve", folder, "--port", port, "--"]
    command += ["--dtype", "float32", "--max-model-len", 256, "--max-num-batched-tokens", 64]
    command += ["--enforce-eager", "--host", "127.0.0.1", "--block-size", 32]
    log = folder.parent / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*map(str, command)], env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            yield f"http://127.0.0.1:{port}", process, log
        finally:
            process.terminate()
            process.wait(60)


def get(address, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        return reply.read().decode()


@pytest.mark.untested("Serving", "HTTP server of vLLM", "in CI; `.ci/vllm` runs it")
def test_two_requests_at_once_are_answered_over_http(base, trained, server):
    """With prefixes cached and prompts read in pieces, as vLLM does by itself."""
    address, process, log = server
    for _ in range(300):
        assert process.poll() is None, log.read_text()[-5000:]
        try:
            get(f"{address}/health")
            break
        except OSError:
            time.sleep(1)
    folder, greedy, _ = trained("plain")

    def answer(prompt):
        asked = {"model": folder.name, "prompt": prompt, "max_tokens": NEW_TOKENS}
        reply = get(f"{address}/v1/completions", asked | {"temperature": 0, "ignore_eos": True})
        return json.loads(reply)["choices"][0]["text"]

    wanted = [base.tokenizer.decode(row) for row in greedy]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(answer, base.prompts)) == wanted
        assert list(pool.map(answer, base.prompts)) == wanted, "from cached prefixes"
    chat = {"messages": [{"role": "user", "content": base.texts[0]}], "max_tokens": 4}
    assert json.loads(get(f"{address}/v1/chat/completions", chat))["choices"][0]["message"]
    found = re.findall(r"^vllm:prefix_cache_hits_total{.*} (\S+)$", get(f"{address}/metrics"), re.M)
    assert float(found[0]) > 0
