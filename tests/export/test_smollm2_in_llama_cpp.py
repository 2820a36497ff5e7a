"""Real weights: the file for llama.cpp against PEFT, and the probe against llama.cpp's server."""

from types import SimpleNamespace

import pytest

from axolotl_alphalora.export.llama_cpp import save_gguf
from axolotl_alphalora.probe import ask_model, ask_server, judge, make_probe
from helpers.exporting import projection_updates, with_lora
from helpers.llama_cpp import served, set_alpha, smollm2

PROMPTS = (
    "The three largest cities of France are",
    "To cook rice, first",
    "Q: What is 12 plus 7?\nA:",
)
TOKENS = 8


@pytest.fixture(scope="module")
def in_llama_cpp(tmp_path_factory):
    """SmolLM2 with a LoRA of differing ranks: in PEFT, and as files for llama.cpp."""
    folder = tmp_path_factory.mktemp("smollm2")
    model, tokenizer = smollm2(folder / "base.gguf")
    updates = projection_updates(model, 8, 1.2)
    save_gguf(folder / "lora.gguf", updates, model.config)
    save_gguf(folder / "plain.gguf", updates, model.config)
    set_alpha(folder / "plain.gguf", max(update.rank for update in updates.values()))
    lora = with_lora(model, updates, folder / "lora")
    probe = make_probe(lora, tokenizer, PROMPTS, base_model="SmolLM2", method="lora", tokens=TOKENS)
    return SimpleNamespace(folder=folder, lora=lora, tokenizer=tokenizer, probe=probe)


def answers(found, lora=None, scale=1.0):
    file = lora and found.folder / lora
    with served(found.folder / "base.gguf", file, scale) as server:
        return ask_server(server.url, PROMPTS, TOKENS)


@pytest.mark.works("Seeing and exporting", "`export --gguf` in llama.cpp, on real weights")
def test_llama_cpp_answers_as_peft_does(in_llama_cpp):
    found = answers(in_llama_cpp, "lora.gguf")
    for one, seen in zip(in_llama_cpp.probe.asked, found, strict=True):
        known = one.answers["adapter"]
        assert seen.text == known.text
        logprobs = [step.logprob for step in seen.steps]
        assert logprobs == pytest.approx([step.logprob for step in known.steps], abs=1e-3)
    verdict = judge(in_llama_cpp.probe, found)
    assert verdict.same["base"] < len(PROMPTS)
    assert verdict.served == "adapter" and verdict.distances["adapter"] < 1e-3


WRONG = {
    "no adapter": (None, 1.0, "base"),
    "the plain export, converted as it is": ("plain.gguf", 1.0, None),
    "half the scale": ("lora.gguf", 0.5, None),
    "double the scale": ("lora.gguf", 2.0, None),
}


@pytest.mark.works("Seeing and exporting", "`alphalora probe`: silent mistakes of llama.cpp")
@pytest.mark.parametrize("case", WRONG)
def test_what_else_is_served_is_noticed(in_llama_cpp, case):
    lora, scale, served_as = WRONG[case]
    found = answers(in_llama_cpp, lora, scale)
    verdict = judge(in_llama_cpp.probe, found)
    assert verdict.served == served_as
    if scale != 1:
        assert verdict.nearest == ("half" if scale < 1 else "double")


def test_a_prompt_is_asked_the_same_way_each_time(in_llama_cpp):
    again = ask_model(in_llama_cpp.lora, in_llama_cpp.tokenizer, PROMPTS[-1], TOKENS)
    assert again == in_llama_cpp.probe.asked[-1].answers["adapter"]
