"""A bitsandbytes base under FSDP2: where each rank loads it, and what cannot be sharded.

The host shards the layers of bitsandbytes for any adapter: it patches FSDP2 where `fsdp_config`
and `load_in_4bit` or `load_in_8bit` are both set. For `adapter: qlora` alone it also says which GPU
a rank loads the base on, so that is said here: `request` leaves a placeholder in
`overrides_of_model_kwargs`, as `quantization.request` does, and `place` fills it in.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

KEY = "device_map"
PLACEHOLDER = {"": "local rank"}

_KEPT_STORAGES = ("bfloat16", "uint8")
"""FSDP2 gathers in the dtype that it computes in, and casts no integers."""


def is_sharded(cfg: Mapping[str, Any]) -> bool:
    """Whether FSDP shards the base."""
    return bool(cfg.get("fsdp_config") or cfg.get("fsdp"))


def check_storage(cfg: Mapping[str, Any], storage: str, where: str, remedy: str) -> None:
    """Refuse packed 4-bit weights in a dtype that FSDP's mixed precision would cast.

    Args:
        cfg: The configuration.
        storage: The dtype that the packed weights are kept in.
        where: What says so, as the message's subject.
        remedy: What to do instead.

    Raises:
        ValueError: If the run is in bf16 under FSDP and the storage is neither bfloat16 nor uint8.
    """
    if is_sharded(cfg) and cfg.get("bf16") and storage not in _KEPT_STORAGES:
        raise ValueError(
            f"{where}: with `bf16` FSDP would cast the packed 4-bit weights to bfloat16 and "
            f"destroy them. {remedy}"
        )


def request(model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Add the placeholder that `place` fills in, unless the user says where to load.

    Args:
        model_kwargs: The validated `overrides_of_model_kwargs`.

    Returns:
        The new mapping, of JSON types only.
    """
    return {KEY: dict(PLACEHOLDER), **model_kwargs}


def place(model_kwargs: Mapping[str, Any] | None) -> None:
    """Put the rank's own device in the placeholder's stead.

    Left to itself, bitsandbytes loads on the current device, which is the first GPU on every rank
    until something has set another.

    Args:
        model_kwargs: The mapping whose values the model loader holds; changed in place.
    """
    from .host import get_device_type

    slot = (model_kwargs or {}).get(KEY)
    if slot == PLACEHOLDER:
        on_cpu = str(get_device_type()) == "cpu"
        slot[""] = "cpu" if on_cpu else int(os.environ.get("LOCAL_RANK", 0))


def check_run(cfg: Any) -> None:
    """Check what is known only once the host has resolved the dtype and applied its patches.

    Args:
        cfg: The normalised configuration of a run with a bitsandbytes base under FSDP.

    Raises:
        ValueError: If the run turned out to be in fp16 on a 4-bit base.
        RuntimeError: If the host's patches of FSDP2 did not take.
    """
    import torch

    from .host import fsdp2_qlora

    if cfg.load_in_4bit and cfg.torch_dtype == torch.float16:
        raise ValueError(
            "`bf16` came to fp16 (`bf16: auto` does on a GPU without bf16), but under FSDP a 4-bit "
            "base works in bf16 and fp32 only. Use DDP: remove `fsdp_config`."
        )
    # The host replaces lines in torch's source and only warns where it does not find them.
    patches = ("apply_init_sharded_param_patch", "apply_init_unsharded_param_patch")
    failed = [
        name
        for name in patches
        if not getattr(getattr(fsdp2_qlora, name, None), "_axolotl_patched", False)
    ]
    if failed:
        raise RuntimeError(
            f"Axolotl could not make FSDP2 of torch {torch.__version__} shard the layers of "
            f"bitsandbytes ({', '.join(failed)} did not take), and the base would be left whole or "
            "damaged. Install the torch that this Axolotl asks for, or remove `fsdp_config`."
        )
