"""Triton's gating without a GPU: interpreted, and compiled for GPUs that are not here."""

import os
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

BF16 = {
    **dict.fromkeys(
        ("hidden_ptr", "logits_ptr", "mixed_ptr", "d_mixed_ptr", "d_hidden_ptr"), "*bf16"
    ),
    **dict.fromkeys(("sums_ptr", "slots_ptr", "factor_ptr"), "*fp32"),
    **dict.fromkeys(("hidden_stride", "logits_stride", "T"), "i32"),
    "d_logits_ptr": "*bf16",
    "valid_ptr": "*u8",
}


@pytest.mark.works(
    "Memory and speed", "Triton gating in Triton's interpreter", "compiles for sm_80 and sm_90"
)
def test_the_kernels_compute_what_plain_operators_do(fresh_process):
    """In the interpreter: values, gradients and statistics, over shapes that fill no tile."""
    done = fresh_process(
        Path(__file__).with_name("triton_interpreted.py"),
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.stdout.strip() == "144 cases agree"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.untested(
    "Memory and speed", "Triton gating on a GPU (`ALPHALORA_TRITON=1`)", "off by default"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("number", "top_k", "rank"), [(2, 1, 8), (5, 2, 8), (9, 4, 3), (8, 8, 64)])
def test_a_gpu_computes_what_plain_operators_do(number, top_k, rank, dtype):
    from adapter.triton_interpreted import compare

    for tokens in (1, 65, 8191):
        with torch.device("cuda"):
            compare(tokens, number, top_k, rank, dtype, masked=True, balanced=True)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("number", "top_k", "rank"), [(2, 1, 8), (5, 2, 8), (9, 9, 12)])
@pytest.mark.parametrize("name", ["_forward", "_backward"])
def test_the_kernels_compile(name, number, top_k, rank, capability, compiler):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from axolotl_alphalora.adapter import triton_gating

    kernel = getattr(triton_gating, name)
    _, fixed = triton_gating._tiles(8192, number * rank, number)
    fixed |= {"K": top_k, "MASKED": True, "BALANCED": True}
    fixed = {key: value for key, value in fixed.items() if key in kernel.arg_names}
    signature = {key: BF16.get(key, "constexpr") for key in kernel.arg_names}
    places = {(kernel.arg_names.index(key),): value for key, value in fixed.items()}
    source = ASTSource(kernel, signature, constexprs=places)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]
