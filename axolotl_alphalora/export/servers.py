"""Which programs take a plain LoRA as it was written, by its ranks."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["servers"]

_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as ``--max-lora-rank``."""

_MISTRAL_RS_RANK = 256


def servers(ranks: Collection[int], modules_to_save: Sequence[str] = ()) -> list[str]:
    """Say who takes an export, with which options, and who must not get it.

    Args:
        ranks: The rank of every layer; ``lora_alpha`` is the rank in each.
        modules_to_save: Modules that it holds whole.

    Returns:
        Sentences; one that begins with ``Warning:`` names a program that fails in silence.
    """
    if modules_to_save:
        return [
            "PEFT and Axolotl load it. It holds whole modules (`modules_to_save`: "
            f"{', '.join(modules_to_save)}), so vLLM, llama.cpp and other servers do not: train "
            "without `lora_modules_to_save` for those."
        ]
    low, high = min(ranks), max(ranks)
    room = next((rank for rank in _VLLM_RANKS if rank >= high), None)
    vllm = f"vLLM with `--enable-lora --max-lora-rank {room}`" if room else ""
    rust = "mistral.rs" if high <= _MISTRAL_RS_RANK else ""
    if low == high:
        same = ["llama.cpp by its `convert_lora_to_gguf.py`", "SGLang"]
        said = [_load_it(f"All layers have rank {high} and alpha {high}", [vllm, *same, rust])]
    else:
        said = [
            _load_it(
                f"Ranks differ from layer to layer ({low} to {high}; `rank_pattern`)", [vllm, rust]
            ),
            "Warning: do not give it to llama.cpp, whose format has one alpha for all layers: with "
            "ranks that differ the answers are garbage, without a message. For llama.cpp, SGLang "
            "and others that read one rank, export again with --same-rank, and with --rank 16 or "
            "so to keep it small.",
        ]
    if room is None:
        most = _VLLM_RANKS[-1]
        said.append(f"vLLM takes no rank above {most}: export again with --rank {most} or less.")
    return said


def _load_it(what: str, servers: Sequence[str]) -> str:
    return f"{what}. It loads in {', '.join(['PEFT', 'Axolotl', *filter(None, servers)])}."
