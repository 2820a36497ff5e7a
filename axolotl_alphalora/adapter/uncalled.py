"""Layers whose weight a model reads without calling them: experts in them would not run."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

# Layers whose weight is read without a call. Known are torch's modules and those of transformers
# 5.20; `tests/adapter/test_targets_uncalled.py` finds what later versions add.
_TORCH: Mapping[type[nn.Module], frozenset[str]] = {
    nn.MultiheadAttention: frozenset({"out_proj"}),
    nn.TransformerEncoderLayer: frozenset({"linear1", "linear2"}),  # the fast path of evaluation
}

_MAMBA_1 = frozenset({"x_proj", "dt_proj", "out_proj"})
_MAMBA_2 = frozenset({"out_proj"})
_BUCKETS = frozenset({"rel_pos_bias", "rel_pos_x_bias", "rel_pos_y_bias"})
_TRANSFORMERS: Mapping[str, frozenset[str]] = {
    # With their CUDA kernels in training; dt_proj always.
    "MambaMixer": _MAMBA_1,
    "FalconMambaMixer": _MAMBA_1,
    "JambaMambaMixer": frozenset({"dt_proj"}),
    "Mamba2Mixer": _MAMBA_2,
    "BambaMixer": _MAMBA_2,
    "FalconH1Mixer": _MAMBA_2,
    "GraniteMoeHybridMambaLayer": _MAMBA_2,
    "NemotronHMamba2Mixer": _MAMBA_2,
    "Zamba2MambaMixer": _MAMBA_2,
    # In training.
    "Gemma3nTextAltUp": frozenset({"correction_coefs"}),
    # In cached generation.
    "LSHSelfAttention": frozenset({"query_key", "value"}),
    # Always.
    "WavLMAttention": frozenset({"q_proj", "k_proj", "v_proj", "out_proj"}),
    "LongcatFlashTopkRouter": frozenset({"classifier"}),
    "TDNNLayer": frozenset({"kernel"}),
    "DetrMHAttentionMap": frozenset({"k_proj"}),
    "ConditionalDetrMHAttentionMap": frozenset({"k_proj"}),
    "MaskFormerDetrMHAttentionMap": frozenset({"k_proj"}),
    "DabDetrMHAttentionMap": frozenset({"k_linear"}),
    "LayoutLMv2Encoder": _BUCKETS,
    "LayoutLMv3Encoder": _BUCKETS,
    "PPDocLayoutV2ReadingOrderEncoder": frozenset({"rel_pos_bias"}),
    "MobileBertLMPredictionHead": frozenset({"dense", "decoder"}),
    "NeoMMEForMaskedLM": frozenset({"unembedding_projection"}),
}
_CODE = ("transformers", "transformers_modules")
"""Packages whose classes go by those names: the library, and the code that checkpoints bring."""


def uncalled_layers(model: nn.Module) -> dict[str, str]:
    """Layers whose weight the model reads without calling them, in some pass at least.

    Args:
        model: The base model, on any device, adapted already or not.

    Returns:
        Exact name to the class of the module that reads the weight.
    """
    found = {}
    for name, owner in model.named_modules():
        for child in _read_by(owner):
            if getattr(owner, child, None) is not None:
                found[f"{name}.{child}" if name else child] = type(owner).__name__
    return found


def _read_by(owner: nn.Module) -> frozenset[str]:
    read = frozenset[str]()
    for kind in type(owner).__mro__:
        read |= _TORCH.get(kind, frozenset())
        if kind.__module__.partition(".")[0] in _CODE:
            read |= _TRANSFORMERS.get(kind.__name__, frozenset())
    return read
