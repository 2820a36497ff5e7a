"""A real vLLM, started by `alphalora serve`, answers over HTTP as PEFT does; run by `.ci/vllm`."""

import importlib.util
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.vllm_engine import NEW_TOKENS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="needs vLLM: .ci/vllm has it"
)


@pytest.fixture
def server(trained, environment):
    """`alphalora serve`: the address of a vLLM, and what it prints."""
    folder = trained("plain")[0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "alphalora", "serve", folder, "--port", port, "--"]
    command += ["--dtype", "float32", "--max-model-len", 256, "--max-num-batched-tokens", 64]
    command += ["--enforce-eager", "--block-size", 32]
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
