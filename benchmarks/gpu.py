"""What would a GPU show? One command for every open question, in under ten minutes.

    python -m benchmarks.gpu                        # on a CUDA GPU
    python -m benchmarks.gpu --model tiny --device cpu      # the same way, for a try

Each measurement is a benchmark of its own in a fresh process, whose command and tables are printed
as they come. One that would go past the time that is left is ended, and the rest are named as not
run. Ranks are measured where there are several GPUs.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import torch

MINUTES = 9.5


def commands(model: str, large: str, device: str) -> dict[str, list[str]]:
    """The measurements: question to module and arguments.

    Args:
        model: The base of most.
        large: The base that 16 GiB should hold.
        device: Where to measure.
    """
    step = ["benchmarks.training_step", "--device", device, "--checkpointing", "--model"]
    tokens = ["--length", "16" if model == "tiny" else "2048", "--repeats", "3"]
    triton = [] if device == "cpu" else ["experts-triton"]
    beside = [*tokens, "--batch", "4", "--contestants", "lora-equal", "experts", *triton]
    alone = [*tokens, "--batch", "1", "--contestants", "uneven"]
    rest = ["experts-plain", "none", "dispatch"]
    found = {
        "a step in nf4; Triton's gating against torch's": [*step, model, "--nf4", *beside, *rest],
        "does QLoRA fit 12 GiB?": [*step, model, "--nf4", *alone, "--limit-gib", "12"],
        "does QLoRA fit 16 GiB?": [*step, large, "--nf4", *alone, "--limit-gib", "16"],
        "a decode step": ["benchmarks.decode", "--device", device, "--model", model],
        "a step in bf16": [*step, model, *beside],
        "spectra": ["benchmarks.spectra", "--model", model, "--blocks", "2", "--repeats", "1"],
    }
    count = torch.cuda.device_count() if device != "cpu" else 0
    if count > 1:
        launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        found[f"{count} GPUs"] = [*launch, "-m", "benchmarks.ranks", "--engine", "fsdp2"]
    return found


def main() -> None:
    """Run them one after the other until the time is over."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="7b")
    parser.add_argument("--large", help="8b; tiny where --model is")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error("this needs a CUDA GPU (--device cpu --model tiny for a try)")
    large = options.large or ("tiny" if options.model == "tiny" else "8b")
    end, failed = time.monotonic() + 60 * options.minutes, []
    for question, command in commands(options.model, large, options.device).items():
        print(f"\n## {question}\n\n$ python -m {' '.join(command)}", flush=True)
        child = subprocess.Popen([sys.executable, "-m", *command], start_new_session=True)
        try:
            if code := child.wait(max(end - time.monotonic(), 0)):
                failed.append(f"{question}: exit status {code}")
        except subprocess.TimeoutExpired:
            failed.append(f"{question}: the {options.minutes:g} minutes were over")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    for reason in failed:
        print(f"\nnot measured: {reason}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
