"""An adapter's files, written whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..files import ADAPTER_CARD, ADAPTER_CONFIG

_DRAFT = ".saving-"


def save_whole(model: Any) -> None:
    """Have a PEFT model write its files beside the old ones first, and then put them in place.

    PEFT writes into the final files: a full disk or a kill would leave a part of an adapter there,
    or the weights of one beside the settings of another.

    Args:
        model: The `PeftModel`; its `save_pretrained` is replaced.
    """
    save = model.save_pretrained

    def save_pretrained(save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        if Path(save_directory).is_file() or not kwargs.get("is_main_process", True):
            save(save_directory, *args, **kwargs)
            return
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_DRAFT}*"):  # by a run that was killed here
            shutil.rmtree(left)
        with TemporaryDirectory(dir=folder, prefix=_DRAFT) as name:
            draft = Path(name)
            if (folder / ADAPTER_CARD).is_file():
                shutil.copy2(folder / ADAPTER_CARD, draft)  # PEFT adds to the card it finds
            save(str(draft), *args, **kwargs)
            # The settings come last, so that a new adapter is complete once they are there.
            files = sorted(p for p in draft.rglob("*") if p.is_file())
            for file in sorted(files, key=lambda p: p.name == ADAPTER_CONFIG):
                with file.open("rb") as written:
                    os.fsync(written.fileno())
                target = folder / file.relative_to(draft)
                target.parent.mkdir(exist_ok=True)
                os.replace(file, target)

    model.save_pretrained = save_pretrained
