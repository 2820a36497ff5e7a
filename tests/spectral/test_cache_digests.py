"""Digests are equal for equal weights and for no others."""

import os
import time

import pytest
import torch

from axolotl_alphalora.spectral import cache
from axolotl_alphalora.spectral.cache import (
    combined_digest,
    file_state,
    is_settled,
    tensor_digest,
)


def weight():
    return torch.randn(6, 10, generator=torch.Generator().manual_seed(0))


def test_the_digest_does_not_depend_on_how_the_values_lie_in_memory():
    expected = tensor_digest(weight())
    assert tensor_digest(weight().T.contiguous().T) == expected
    assert tensor_digest(torch.cat([weight(), weight()], 1)[:, :10]) == expected
    assert tensor_digest(torch.nn.Parameter(weight())) == expected


def test_a_large_tensor_is_digested_in_slices(monkeypatch):
    expected = tensor_digest(weight())
    monkeypatch.setattr(cache, "_SLICE", 28)
    assert tensor_digest(weight()) == expected


def test_value_shape_and_dtype_make_a_difference():
    one_bit = weight()
    one_bit.view(torch.int32)[3, 4] ^= 1
    others = [
        one_bit,
        weight().T,
        weight().reshape(10, 6),
        weight().view(torch.int32),
        weight().double(),
        weight().bfloat16(),
        weight().half(),
    ]
    assert len({tensor_digest(tensor) for tensor in [weight(), *others]}) == 1 + len(others)
    zeros = [torch.zeros(4, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.int16)]
    assert len({tensor_digest(tensor) for tensor in zeros}) == 3


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.float8_e4m3fn, torch.float64])
@pytest.mark.parametrize("shape", [(), (0,), (3, 1, 2)])
def test_every_dtype_and_shape_has_a_digest(dtype, shape):
    tensor = torch.ones(shape).to(dtype)
    assert tensor_digest(tensor) == tensor_digest(tensor.clone())


def test_a_combined_digest_knows_names_but_no_order():
    combined = combined_digest({"a": "1", "b": "2"})
    assert combined == combined_digest({"b": "2", "a": "1"})
    assert combined != combined_digest({"a": "2", "b": "1"})
    assert combined != combined_digest({"a": "1"})


def test_a_file_is_settled_once_a_change_would_show(tmp_path):
    file = tmp_path / "file"
    file.write_text("one")
    assert not is_settled(file_state(file))
    os.utime(file, (time.time() - 10,) * 2)
    state = file_state(file)
    assert is_settled(state)
    file.write_text("two")
    assert file_state(file) != state


def test_a_rewritten_file_differs_even_with_its_old_time_stamp(tmp_path):
    file = tmp_path / "file"
    file.write_text("one")
    before = file.stat()
    state = file_state(file)
    time.sleep(0.02)
    file.write_text("two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert file_state(file) != state
