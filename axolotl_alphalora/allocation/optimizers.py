"""How many bytes an optimiser keeps for one trained matrix.

The rules are those of the optimisers that Axolotl 0.21 builds from `optimizer:` with
transformers 5.20, torch 2.14, bitsandbytes 0.50, torchao 0.18 and schedulefree, for float32
parameters and without `optim_args`: an option there may add state (`momentum` of `sgd` and
`rmsprop`, `centered`, `sinkgd_spectral_norm`) or change its size (`block_size`,
`rank_fraction`).

Tensors with no dimension, such as step counters, are left out: 4 bytes for each parameter tensor.
So are the two look-up tables (2 KiB) that bitsandbytes shares between all tensors. The state of a
paged optimiser counts in full, although it may be moved to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

_FLOAT = 4
_SMALLEST_QUANTIZED = 4096
_BLOCK = 256
_MUON_BLOCK = 2048


def _none(rows: int, columns: int) -> int:
    return 0


def _float32(rows: int, columns: int, *, buffers: int) -> int:
    """Buffers of the parameter's shape."""
    return buffers * _FLOAT * rows * columns


def _factored(rows: int, columns: int) -> int:
    """A mean for each row and each column."""
    return _FLOAT * (rows + columns)


def _bitsandbytes_8bit(rows: int, columns: int, *, buffers: int) -> int:
    """A byte for each element and an absolute maximum for each block; small tensors stay 32-bit."""
    size = rows * columns
    if size < _SMALLEST_QUANTIZED:
        return _float32(rows, columns, buffers=buffers)
    blocks = -(-size // _BLOCK)
    return buffers * (size + _FLOAT * blocks)


def _torchao(rows: int, columns: int, *, bits: int, table: int) -> int:
    """Two moments in whole blocks, each with its own table; what does not divide stays 32-bit."""
    size = rows * columns
    if size < _SMALLEST_QUANTIZED or size % _BLOCK:
        return _float32(rows, columns, buffers=2)
    return 2 * (size * bits // 8 + _FLOAT * (size // _BLOCK + table))


def _dion(rows: int, columns: int) -> int:
    """Momentum, and the basis of its power iteration at full rank."""
    return _FLOAT * (rows * columns + min(rows, columns) ** 2)


def _muon_8bit(rows: int, columns: int) -> int:
    """A byte for each element and a scale for each block of a row."""
    blocks = rows * -(-columns // _MUON_BLOCK)
    return rows * columns + _FLOAT * blocks


_ONE = partial(_float32, buffers=1)
_TWO = partial(_float32, buffers=2)
_THREE = partial(_float32, buffers=3)
_ONE_8BIT = partial(_bitsandbytes_8bit, buffers=1)
_TWO_8BIT = partial(_bitsandbytes_8bit, buffers=2)
_THREE_8BIT = partial(_bitsandbytes_8bit, buffers=3)

RULES: dict[str, Callable[[int, int], int]] = {
    "adafactor": _factored,
    "adagrad": _ONE,
    "adamc": _TWO,
    "adamw_8bit": _TWO_8BIT,
    "adamw_bnb_8bit": _TWO_8BIT,
    "adamw_torch": _TWO,
    "adamw_torch_4bit": partial(_torchao, bits=4, table=16),
    "adamw_torch_8bit": partial(_torchao, bits=8, table=256),
    "adamw_torch_fused": _TWO,
    "ademamix": _THREE,
    "ademamix_8bit": _THREE_8BIT,
    "adopt_adamw": _TWO,
    "ao_adamw_fp8": partial(_torchao, bits=8, table=0),
    "dion": _dion,
    "lion_32bit": _ONE,
    "lion_8bit": _ONE_8BIT,
    "muon": _ONE,
    "muon_8bit": _muon_8bit,
    "paged_adamw_32bit": _TWO,
    "paged_adamw_8bit": _TWO_8BIT,
    "paged_ademamix_32bit": _THREE,
    "paged_ademamix_8bit": _THREE_8BIT,
    "paged_lion_32bit": _ONE,
    "paged_lion_8bit": _ONE_8BIT,
    "rmsprop": _ONE,
    "rmsprop_bnb": _ONE,
    "rmsprop_bnb_32bit": _ONE,
    "rmsprop_bnb_8bit": _ONE_8BIT,
    "schedule_free_adamw": _TWO,
    "schedule_free_radam": _TWO,
    "schedule_free_sgd": _ONE,
    "sgd": _none,
    "sinkgd": _none,
}
"""The optimisers whose state is known, as `optimizer:` takes them, to what a matrix costs."""


def state_bytes(optimizer: str, shape: tuple[int, int]) -> int:
    """Return the bytes that an optimiser keeps between steps for one float32 matrix.

    Args:
        optimizer: Its name, as Axolotl's `optimizer:` takes it.
        shape: Rows and columns of the matrix.

    Raises:
        ValueError: If the optimiser's state is not known; the message lists the known ones.
    """
    if optimizer not in RULES:
        raise ValueError(
            f"the memory of optimizer {optimizer!r} is not known, so memory_mib cannot be kept: "
            f"give total_parameters instead, or choose one of {', '.join(RULES)}"
        )
    return RULES[optimizer](*shape)
