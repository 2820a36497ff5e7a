import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axolotl_alphalora.sensitivity import capture

sides = st.integers(1, 40)


@pytest.mark.usefixtures("combinations")
@given(
    tokens=st.integers(0, 40), wide=sides, tall=sides, pieces=st.sampled_from([1, 30, 200, 10**6])
)
def test_either_path_in_pieces_of_any_size_is_the_norm_of_the_product(tokens, wide, tall, pieces):
    torch.manual_seed(tokens + 41 * wide)
    x, gradient = torch.randn(2, tokens, wide), torch.randn(2, tokens, tall)
    expected = torch.einsum("bti,bto->oi", x.double(), gradient.double()).square().sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capture, "_ELEMENTS", pieces)
        found = capture.squared_gradient_norm(x, gradient)
        rows = max(1, pieces // 40)
        flat = (x.flatten(0, 1), gradient.flatten(0, 1))
        both = (capture._from_grams(*flat, rows), capture._from_product(*flat))
    # What float32 can tell apart: Gram matrices hold terms of this size that may cancel.
    terms = 1e-6 * float(x.square().sum() * gradient.square().sum())
    for value in (found, *both):
        assert value.dtype is torch.float32
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=terms)


@pytest.mark.parametrize(("tokens", "called"), [(8, "_from_grams"), (64, "_from_product")])
def test_the_cheaper_path_is_taken(monkeypatch, tokens, called):
    """T (in + out) against in out operations: the two meet at 16 tokens for 32 by 32."""
    other = {"_from_grams": "_from_product", "_from_product": "_from_grams"}[called]
    monkeypatch.setattr(capture, other, lambda *_: pytest.fail(f"{other} was called"))
    capture.squared_gradient_norm(torch.randn(tokens, 32), torch.randn(tokens, 32))


@pytest.mark.parametrize("tokens", [9, 300])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_multiplied_and_summed_in_float32(dtype, tokens):
    torch.manual_seed(0)
    x, gradient = torch.randn(tokens, 24).to(dtype), (torch.randn(tokens, 48) * 1e-3).to(dtype)
    expected = (gradient.double().T @ x.double()).square().sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = capture.squared_gradient_norm(x, gradient)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
