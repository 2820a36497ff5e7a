"""What bitsandbytes leaves in full precision: stacked weights, such as a base's own experts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_GIB = 2**30


def warn_unquantised(model: nn.Module) -> None:
    """Log what `describe_unquantised` says, once for all processes."""
    from .host import get_logger
    from .shared import is_first_process

    found = describe_unquantised(model)
    if found is not None and is_first_process():
        get_logger(__name__).warning("AlphaLoRA: %s", found)


def describe_unquantised(model: nn.Module) -> str | None:
    """Say which stacked weights of a base quantised by bitsandbytes are not quantised.

    Args:
        model: The loaded base model.

    Returns:
        A sentence with their number, parameters, size in GiB and the first name; None if there are
        none, or bitsandbytes did not quantise the model.
    """
    from ..hosts.transformers import quantiser
    from ..spectral.definition import stacked_weights

    method = getattr(getattr(quantiser(model), "quantization_config", None), "quant_method", None)
    if method is None or not str(getattr(method, "value", method)).startswith("bitsandbytes"):
        return None
    parameters = dict(model.named_parameters())
    left = {
        name: (math.prod(shape), parameters[name])
        for name, shape in stacked_weights(model).items()
        if parameters[name].is_floating_point()
    }
    if not left:
        return None
    count = sum(elements for elements, _ in left.values())
    size = sum(elements * parameter.element_size() for elements, parameter in left.values())
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for _, p in left.values()})
    return (
        f"bitsandbytes quantises linear layers only. {len(left)} stacked weights of the base (such "
        f"as a mixture-of-experts model's own experts) stay in {' and '.join(dtypes)}: {count:,} "
        f"parameters, {size / _GIB:.2f} GiB, {next(iter(left))} first. To quantise and train those "
        "use `adapter: qlora` with `quantize_moe_experts: true` and `lora_target_parameters`."
    )
