"""What is said of servers goes by the ranks that were written."""

import pytest

from axolotl_alphalora.export.servers import options, servers


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
def test_differing_ranks_must_not_be_converted_for_llama_cpp(ranks):
    text = said(*ranks)
    loads, _, warning = text.partition("Warning: ")
    assert "llama.cpp" not in loads and "SGLang" not in loads
    assert warning.startswith("do not convert it with llama.cpp's")
    assert "Export again with --gguf FILE for llama.cpp." in warning
    assert "export again with --same-rank" in warning
    assert "vLLM with" in loads and "PEFT" in loads


@pytest.mark.parametrize("ranks", [(8, 152), (16, 16)])
def test_a_file_for_llama_cpp_is_what_it_takes(ranks):
    text = " ".join(servers(ranks, gguf="lora.gguf"))
    assert "llama.cpp with `--lora lora.gguf`" in text.partition("Warning: ")[0]
    assert "--gguf FILE" not in text


def test_the_options_of_each_server():
    assert options([8, 152], "lora.gguf") == {
        "vLLM": "--enable-lora --max-lora-rank 256 --lora-modules NAME=DIR",
        "mistral.rs": "--lora NAME=DIR",
        "llama.cpp": "--lora lora.gguf",
    }


def test_a_server_that_reads_one_rank_is_offered_one():
    assert options([16, 16])["SGLang"] == "--enable-lora --lora-paths NAME=DIR"
    assert "SGLang with `--enable-lora --lora-paths NAME=DIR`" in said(16, 16)


def test_the_key_of_the_base_that_mistral_rs_misses_is_named():
    assert "mistral.rs wants `rope_theta` in the base's `config.json`" in said(8, 16)
    assert "rope_theta" not in said(16, whole=["lm_head"])


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


def test_mistral_rs_is_told_of_more_than_256():
    assert "--lora-max-rank" not in said(256)
    assert "mistral.rs with `--lora NAME=DIR --lora-max-rank 257`" in said(257)


def test_whole_modules_are_for_peft_alone():
    text = said(16, 16, whole=["lm_head"])
    assert text.startswith("PEFT and Axolotl load it.") and "`modules_to_save`: lm_head" in text
    assert "--max-lora-rank" not in text
