"""A real vLLM serves an export as PEFT does, by the probe: SmolLM2-135M, fp32, on the CPU.

In an environment of its own, which `.ci/vllm` makes.
"""

import importlib.util
import os
import shlex
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_alphalora.export.servers import options
from axolotl_alphalora.probe import ask_server, judge, make_probe
from benchmarks.common import smollm2
from helpers.exporting import projection_updates, with_lora

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="needs vLLM: .ci/vllm has it"
)
PROMPTS = ("The three largest cities of France are", "To cook rice, first", "12 + 7 =")
TOKENS = 8


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """vLLM with the base and a LoRA whose ranks differ, started as the export says."""
    folder = tmp_path_factory.mktemp("export")
    base = os.environ.get("ALPHALORA_SMOLLM2") or str(smollm2())
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    updates = projection_updates(model, 21, 0.8)
    lora = with_lora(model, updates, folder / "lora")
    probe = make_probe(lora, tokenizer, PROMPTS, base_model=base, method="lora", tokens=TOKENS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = options([update.rank for update in updates.values()])["vLLM"]
    passed = shlex.split(said.replace("NAME=DIR", f"mine={folder / 'lora'}"))
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", base]
    command += [*passed, "--port", str(port), "--served-model-name", "base", "--dtype", "float32"]
    command += ["--max-model-len", "256", "--enforce-eager", "--host", "127.0.0.1"]
    settings = {
        "VLLM_CACHE_ROOT": str(folder / "cache"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=os.environ | settings, stdout=file, stderr=subprocess.STDOUT
        )
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(300):
                assert process.poll() is None, log.read_text()[-5000:]
                try:
                    urlopen(f"{url}/health").close()
                    break
                except OSError:
                    time.sleep(1)
            yield SimpleNamespace(url=url, probe=probe)
        finally:
            process.terminate()
            process.wait(60)


@pytest.mark.untested("Serving", "exported LoRAs in vLLM", "in CI; `.ci/vllm` runs it")
@pytest.mark.parametrize(("model", "known"), [("mine", "adapter"), ("base", "base")])
def test_vllm_answers_as_peft_does(served, model, known):
    """The base too, which a request gets that does not name the LoRA."""
    found = ask_server(served.url, PROMPTS, TOKENS, model=model)
    verdict = judge(served.probe, found)
    print(verdict)
    assert verdict.served == known and verdict.distances[known] < 1e-3
    assert verdict.same[known] == len(PROMPTS)
