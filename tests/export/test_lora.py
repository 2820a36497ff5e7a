"""What is said of servers goes by the ranks that were written."""

import pytest

from axolotl_alphalora.export.lora import servers


def said(*ranks, whole=()):
    return " ".join(servers(ranks, whole))


@pytest.mark.parametrize("rank", [4, 16, 200])
def test_one_rank_everywhere_goes_to_all(rank):
    text = said(rank, rank, rank)
    assert f"All layers have rank {rank} and alpha {rank}." in text
    for name in ("PEFT", "Axolotl", "vLLM", "llama.cpp", "SGLang", "mistral.rs"):
        assert name in text
    assert "Warning" not in text and "not" not in text


@pytest.mark.parametrize("ranks", [(8, 16), (8, 152), (1, 2, 3)])
def test_differing_ranks_must_not_go_to_llama_cpp(ranks):
    text = said(*ranks)
    loads, _, warning = text.partition("Warning: ")
    assert "llama.cpp" not in loads and "SGLang" not in loads
    assert warning.startswith("do not give it to llama.cpp")
    assert "export again with --same-rank" in warning
    assert "vLLM with" in loads and "PEFT" in loads


@pytest.mark.parametrize(
    ("ranks", "room"),
    [((8,), 8), ((9,), 16), ((8, 152), 256), ((257,), 320), ((512,), 512), ((2,), 8), ((1,), 1)],
)
def test_vllm_gets_the_smallest_of_its_ranks_that_holds_all(ranks, room):
    assert f"--max-lora-rank {room}" in said(*ranks)


@pytest.mark.parametrize("ranks", [(513,), (8, 600)])
def test_what_vllm_cannot_hold_is_said(ranks):
    text = said(*ranks)
    assert "--max-lora-rank" not in text
    assert "vLLM takes no rank above 512: export again with --rank 512 or less." in text


def test_mistral_rs_ends_at_256():
    assert "mistral.rs" in said(256) and "mistral.rs" not in said(257)


def test_whole_modules_are_for_peft_alone():
    text = said(16, 16, whole=["lm_head"])
    assert text.startswith("PEFT and Axolotl load it.") and "`modules_to_save`: lm_head" in text
    assert "--max-lora-rank" not in text
