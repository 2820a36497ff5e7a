"""Who takes an export, with which options, and who must not get it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `--max-lora-rank`."""

MISTRAL_RS_RANK = 256
"""The highest rank that mistral.rs takes unless `--lora-max-rank` says another."""


def options(ranks: Collection[int], gguf: str | None = None) -> dict[str, str]:
    """What to pass to each server that takes an export without whole modules.

    Args:
        ranks: The rank of every layer.
        gguf: Name of the file for llama.cpp, None if none was written.

    Returns:
        Name of the server to its options, where NAME is what requests ask for as their model, and
        DIR the export.
    """
    low, high = min(ranks), max(ranks)
    found = {}
    if room := next((rank for rank in VLLM_RANKS if rank >= high), None):
        found["vLLM"] = f"--enable-lora --max-lora-rank {room} --lora-modules NAME=DIR"
    found["mistral.rs"] = "--lora NAME=DIR" + (
        f" --lora-max-rank {high}" if high > MISTRAL_RS_RANK else ""
    )
    if gguf is not None:
        found["llama.cpp"] = f"--lora {gguf}"
    if low == high:
        found["SGLang"] = "--enable-lora --lora-paths NAME=DIR"
    return found


TEXT_PART = "model.language_model"
"""What multimodal models of transformers call the part that a text model calls `model`."""


def servers(
    ranks: Collection[int],
    modules_to_save: Sequence[str] = (),
    gguf: str | None = None,
    *,
    prefix: str | None = None,
    part: bool = False,
    added: int = 0,
) -> list[str]:
    """Say who takes an export, with which options, and who must not get it.

    Args:
        ranks: The rank of every layer; `lora_alpha` is the rank in each.
        modules_to_save: Modules that it holds whole.
        gguf: Name of the file for llama.cpp, None if none was written.
        prefix: What its modules were named anew with.
        part: Whether the base is the text part of a multimodal model.
        added: Rows that training added to the vocabulary and left untrained.

    Returns:
        Sentences; one that begins with `Warning:` names a program that fails in silence.
    """
    if modules_to_save:
        return [
            "PEFT and Axolotl load it. It holds whole modules (`modules_to_save`: "
            f"{', '.join(modules_to_save)}), so vLLM, llama.cpp and other servers do not: train "
            "without `lora_modules_to_save` for those."
        ]
    low, high = min(ranks), max(ranks)
    takers = [f"{name} with `{flags}`" for name, flags in options(ranks, gguf).items()]
    if low == high:
        if gguf is None:
            takers.append("llama.cpp by its `convert_lora_to_gguf.py`")
        said = [_load_it(f"All layers have rank {high} and alpha {high}", takers)]
    else:
        what = f"Ranks differ from layer to layer ({low} to {high}; `rank_pattern`)"
        converting = "" if gguf else " Export again with --gguf FILE for llama.cpp."
        said = [
            _load_it(what, takers),
            "Warning: do not convert it with llama.cpp's `convert_lora_to_gguf.py`, which writes "
            "one alpha for all layers: with ranks that differ the answers are garbage, without a "
            f"message.{converting} For SGLang and others that read one rank, export again with "
            "--same-rank, and with --rank 16 or so to keep it small.",
        ]
    said.append(
        "mistral.rs wants `rope_theta` in the base's `config.json`, where transformers 5 writes it "
        "into `rope_parameters`: there, add it to a copy of the base."
    )
    if prefix is not None:
        said.append(
            f"Its modules are called `{prefix}...`, as in the whole multimodal model, which vLLM "
            "loads: PEFT finds them there, and not in the text model by itself."
        )
    elif part:
        said.append(
            "Warning: the base is a multimodal model, and the adapter has the names of its text "
            "model by itself. vLLM loads the whole model, passes over these names without a "
            f"message and serves the base: for it, export again with --prefix {TEXT_PART}."
        )
    if added:
        said.append(
            f"Warning: training added {added} tokens to the vocabulary and did not train their "
            "embeddings, which are not in the export: a request that has one of them fails, or "
            "means another token. A token for padding alone is never in a request."
        )
    if high > VLLM_RANKS[-1]:
        most = VLLM_RANKS[-1]
        said.append(f"vLLM takes no rank above {most}: export again with --rank {most} or less.")
    return said


def _load_it(what: str, takers: Sequence[str]) -> str:
    return f"{what}. It loads in {', '.join(['PEFT', 'Axolotl', *takers])}."
