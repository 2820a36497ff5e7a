"""One of two gloo ranks: plans as the plugin does and writes down what it got.

Axolotl's own command line asks the GPUs of several ranks whether they reach each other, so this
starts where the plugin's work does.
"""

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist


def main(what: str, config: str, answers: str) -> None:
    dist.init_process_group("gloo")
    answer = Path(answers) / f"rank-{dist.get_rank()}.json"
    try:
        found = ACTIONS[what](config)
    except Exception as error:
        found = {"type": type(error).__name__, "error": str(error)}
    answer.write_text(json.dumps(found))


def plan(config: str) -> dict:
    """The plugin's own step before the model is loaded, counting the matrices that are read."""
    from axolotl.utils.dict import DictDefault

    from axolotl_alphalora.plugin.loading import Allocation
    from axolotl_alphalora.spectral import CheckpointWeights

    read = []
    tensor = CheckpointWeights.tensor
    CheckpointWeights.tensor = lambda self, name: (read.append(name), tensor(self, name))[1]
    allocation = Allocation(DictDefault(json.loads(Path(config).read_text())))
    return {"counts": allocation.counts, "plan": allocation.plan, "read": len(read)}


def die(config: str) -> dict:
    """The working rank is killed at its work."""
    from axolotl_alphalora.plugin.shared import on_one_process

    return {"result": on_one_process(lambda: os._exit(9))}


def fail_oddly(config: str) -> dict:
    """An error that cannot be pickled."""
    from axolotl_alphalora.plugin.shared import on_one_process

    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    def work():
        raise Odd("this", "that")

    return {"result": on_one_process(work)}


ACTIONS = {"plan": plan, "die": die, "fail_oddly": fail_oddly}

if __name__ == "__main__":
    main(*sys.argv[1:])
