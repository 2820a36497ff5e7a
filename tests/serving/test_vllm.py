"""A real vLLM serves routed adapters as PEFT does: SmolLM2-135M, fp32, on the CPU.

In an environment of its own, which `.ci/vllm` makes.
"""

import importlib.util
import shutil

import pytest

from axolotl_alphalora.vllm.saved import read_adapter
from helpers.vllm_served import ADAPTERS, llm, same

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="needs vLLM: .ci/vllm has it"
)
MODES = {
    "eager": {"enforce_eager": True},
    "compiled": {},
    "transformers": {"enforce_eager": True, "model_impl": "transformers"},
}


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


def test_another_adapter_in_the_same_place_gets_its_own_graph_and_weights(
    base, trained, ask, tmp_path
):
    """One of another shape, then one of the same shape, which gets the cached graph."""
    digests = [read_adapter(trained(name)[0]).digest() for name in ("plain", "fine", "fine again")]
    assert digests[0] != digests[1] == digests[2]
    assert trained("fine")[1] != trained("fine again")[1]
    folder = tmp_path / "adapter"
    for name in ("plain", "fine", "fine again"):
        own, greedy, scores = trained(name)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(own, folder)
        same(ask(llm(base, folder), greedy), greedy, scores)


@pytest.mark.untested("Serving", "tensor parallelism in a real vLLM", "in CI; `.ci/vllm` runs it")
@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_three_processes_share_the_work(base, trained, ask, mode):
    """Heads, rows of B and input features divided by three; gates agreed on over gloo."""
    folder, greedy, scores = trained("fine")
    options = {"tensor_parallel_size": 3, "distributed_executor_backend": "mp"}
    same(ask(llm(base, folder, **MODES[mode], **options), greedy), greedy, scores)


def test_other_loras_beside_it_are_refused(base, trained, ask):
    folder, greedy, _ = trained("plain")
    words = ask(llm(base, folder, enforce_eager=True, enable_lora=True), greedy, fails=True)
    assert "--enable-lora would add other LoRAs" in words
