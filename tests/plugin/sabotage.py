"""A third Axolotl plugin for the tests: ends or fills up a run while it writes an adapter.

`sabotage.json` in the working directory says how: `when`, the number of the save that it strikes
(0 is the first one); `signal` to die of, or `limit`, the most bytes that a file may get.
"""

import json
import os
import resource
from pathlib import Path

from axolotl.integrations.base import BasePlugin


class SabotagePlugin(BasePlugin):
    """Strikes in the middle of a file of weights, which is where most of the bytes are."""

    def post_trainer_create(self, cfg, trainer):
        """Stand between PEFT and the file."""
        import peft.peft_model as host

        file = Path("sabotage.json")
        if not file.exists():
            return
        plan, write, saves = json.loads(file.read_text()), host.safe_save_file, []

        def strike(tensors, path, metadata=None):
            saves.append(path)
            if len(saves) - 1 != plan["when"]:
                return write(tensors, path, metadata=metadata)
            if "signal" in plan:
                write(tensors, path, metadata=metadata)
                os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), plan["signal"])
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (plan["limit"], most))
            try:
                write(tensors, path, metadata=metadata)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

        host.safe_save_file = strike
