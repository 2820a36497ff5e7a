"""Runs Axolotl command lines, importing the host once: each in a forked child.

Reads one JSON object a line ({"argv", "cwd", "log", "input"}) from standard input and answers each
with a line holding the child's exit code. The plugin itself is imported by the child, as in a real
run.
"""

import io
import json
import os
import sys
import traceback

if __name__ == "__main__":
    # The host prints while it is imported.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

# ruff: noqa: E402
import axolotl.cli.config
import axolotl.cli.evaluate
import axolotl.cli.inference
import axolotl.cli.main
import axolotl.cli.merge_lora
import axolotl.cli.train
import axolotl.core.builders  # noqa: F401
import bitsandbytes  # noqa: F401
import torch
import transformers.models.llama.modeling_llama  # noqa: F401

torch.set_num_threads(1)


def run(request) -> int:
    """The child: one command line, its output in a file."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(request["cwd"])
    sys.stdin = io.StringIO(request["input"])
    sys.argv = ["axolotl", *request["argv"]]
    try:
        axolotl.cli.main.main()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve() -> None:
    """Answer requests until standard input ends."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = run(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


# The datasets library starts its workers by importing this file again.
if __name__ == "__main__":
    serve()
