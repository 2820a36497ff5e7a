"""Layer quality of a model with LLaMA-2-7B's shapes and random weights: time and memory.

    python -m benchmarks.spectra_7b [--blocks N] [--estimator NAME] [--directory DIR]

The checkpoint is written block by block, 405 MB each, bfloat16. All 32 blocks are the default
where there is a CUDA device (13 GB of disk); on the CPU it is one, and the figure for 32 is an
extrapolation and printed as one. The time is that of spectra and fits; finding the layers with
transformers is printed apart.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import in_fresh_process, machine, peak_mib

BLOCKS, HIDDEN, INNER, VOCABULARY = 32, 4096, 11008, 32000
SHAPES = {
    **{f"self_attn.{kind}_proj": (HIDDEN, HIDDEN) for kind in "qkvo"},
    **{f"mlp.{kind}_proj": (INNER, HIDDEN) for kind in ("gate", "up")},
    "mlp.down_proj": (HIDDEN, INNER),
}


def main() -> None:
    import torch

    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=BLOCKS if on_gpu else 1)
    parser.add_argument("--estimator", default="xmin_peak")
    parser.add_argument(
        "--directory", type=Path, help="where to write; a temporary one if left out"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_measure(str(arguments.directory), arguments.estimator)))
        return
    print(machine())
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        _write(Path(folder), arguments.blocks)
        options = ["--directory", folder, "--estimator", arguments.estimator]
        found = in_fresh_process("benchmarks.spectra_7b", "--child", *options, HF_HUB_OFFLINE="1")
    per_block = found["seconds"] / arguments.blocks
    print(f"{arguments.blocks} of {BLOCKS} blocks, {found['matrices']} matrices, {found['dtype']}")
    print(f"  layers from transformers' definition  {found['layers']:.1f} s")
    print(f"  spectra and {arguments.estimator:<25} {found['seconds']:.1f} s")
    print(f"  a block                               {per_block:.2f} s")
    if arguments.blocks < BLOCKS:
        print(f"  {BLOCKS} blocks, extrapolated              {per_block * BLOCKS / 60:.1f} min")
    print(f"  peak memory beyond imports            {found['memory']:.0f} MiB")
    if on_gpu:
        print(f"  peak GPU memory                       {found['gpu_memory']:.0f} MiB")


def _write(folder: Path, blocks: int) -> None:
    """Write the checkpoint as shards of one block, with the index that names them."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=blocks,
        num_attention_heads=32,
        num_key_value_heads=32,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    weight_map = {}
    for block in range(blocks):
        shard = {}
        for kind, shape in SHAPES.items():
            weight = torch.empty(shape, dtype=torch.bfloat16, device=device)
            shard[f"model.layers.{block}.{kind}.weight"] = weight.normal_(
                std=0.02, generator=generator
            ).cpu()
        name = f"model-{block + 1:05}-of-{blocks:05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _measure(folder: str, estimator: str) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM  # noqa: F401

    from axolotl_alphalora.spectral import BaseModel, QualitySettings, measure
    from axolotl_alphalora.spectral.definition import linear_layers

    before = peak_mib()
    start = time.perf_counter()
    base = BaseModel(folder)
    shapes = base.layers(linear_layers, "benchmark")
    weights = base.weights(shapes)
    layers = time.perf_counter() - start
    start = time.perf_counter()
    found = measure(weights, shapes, QualitySettings(estimator=estimator))
    seconds = time.perf_counter() - start
    return {
        "matrices": len(shapes),
        "dtype": found.description["dtype"],
        "layers": layers,
        "seconds": seconds,
        "memory": peak_mib() - before,
        "gpu_memory": torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0,
    }


if __name__ == "__main__":
    main()
