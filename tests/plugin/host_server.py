"""Runs Axolotl command lines, importing the host once: each in a forked child.

Reads one JSON object a line ({"argv", "cwd", "log", "input", "background", "module"}) from standard
input and answers each with a line holding the child's exit code, or in the background its process
id. Instead of the command line it runs the module that is named, as `python -m` does. The plugin
itself is imported by the child, as in a real run.
"""

import gc
import io
import json
import os
import runpy
import sys
import traceback
from importlib import import_module

VERBS = ("evaluate", "inference", "merge_lora", "preprocess", "quantize", "train", "vllm_serve")
HOST = [f"axolotl.cli.{verb}" for verb in VERBS]
HEAVY = ["axolotl.core.builders", "bitsandbytes", "deepspeed"]
HEAVY += ["transformers.models.llama.modeling_llama"]


def serve() -> None:
    """Answer requests until standard input ends."""
    # The host prints while it is imported.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in [*HOST, *HEAVY]:
        import_module(name)
    import_module("torch").set_num_threads(1)
    save_in_this_process(import_module("datasets").Dataset)
    # The children's collections would search, and so copy, all that stands here.
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            code = run(request)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        if request.get("background"):
            print(child, file=answers, flush=True)
            continue
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def save_in_this_process(dataset: type) -> None:
    """The host saves every dataset in a process of its own, which imports for seconds."""
    save = dataset.save_to_disk
    dataset.save_to_disk = lambda self, path, num_proc=None, **keys: save(self, path, **keys)


def run(request: dict) -> int:
    """The child: one command line, its output in a file."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(request["cwd"])
    sys.stdin = io.StringIO(request.get("input", ""))
    sys.argv = ["axolotl", *request["argv"]]
    try:
        if module := request.get("module"):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            import_module("axolotl.cli.main").main()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


# The datasets library starts its workers by importing this file again: they need none of it.
if __name__ == "__main__":
    serve()
