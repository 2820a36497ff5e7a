"""What has been done already: which run an output belongs to, and whether it is complete."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from axolotl_alphalora.files import ADAPTER_WEIGHTS
from axolotl_alphalora.quickstart.config import ADAPTER_DIRECTORY, PREPARED_DIRECTORY, RunConfig
from axolotl_alphalora.quickstart.files import QuickstartError, digest, read_json, write_json

STATE_FILE = "state.json"


class State:
    """The quickstart's notes in its directory, saved on every change.

    `run` is the digest of what the output was made from, null while old output is being deleted;
    `trained` says that training ended; `planned` and `evaluated` are digests of what was planned
    and evaluated.
    """

    def __init__(self, directory: Path) -> None:
        """Read the notes, if there are any."""
        self.directory = directory
        self._values = read_json(directory / STATE_FILE)

    def is_trained(self, run: str, config: RunConfig) -> bool:
        """Tell whether the adapter of this very run is there and complete."""
        matches = self._values.get("run") == run and self._values.get("trained") is True
        return matches and (config.output_dir / ADAPTER_WEIGHTS).is_file()

    def begin(self, run: str, config: RunConfig) -> int:
        """Make the output directory fit for training.

        Checkpoints from which this run can continue stay. The output of another run of the
        quickstart is deleted. Output that the quickstart did not make is moved aside.

        Args:
            run: Digest of what the run is made from.
            config: The run.

        Returns:
            The step from which training will continue; 0 for a fresh start.
        """
        output = config.output_dir
        if self._values.get("run") != run:
            if output == self.directory / ADAPTER_DIRECTORY:
                self._clear(output)
            elif _checkpoints(output):
                raise QuickstartError(
                    f"`output_dir: {output}` holds checkpoints of another run, from which Axolotl "
                    f"would continue. Empty it, or name another directory in {config.path}."
                )
        # Axolotl takes any file in here for a complete dataset, and its name for its content.
        shutil.rmtree(self.directory / PREPARED_DIRECTORY, ignore_errors=True)
        self.note(run=run, trained=False)
        return drop_useless_checkpoints(output, config.max_steps)

    def is_done(self, stage: str, what: str, result: Path) -> bool:
        """Tell whether a stage ran on exactly this input, and its JSON result is there.

        Args:
            stage: "planned" or "evaluated".
            what: Digest of the input.
            result: The stage's result.
        """
        return self._values.get(stage) == what and bool(read_json(result))

    def note(self, **values: Any) -> None:
        """Change some notes and save all of them."""
        self._values |= values
        write_json(self.directory / STATE_FILE, self._values)

    def _clear(self, output: Path) -> None:
        if "run" in self._values:
            self.note(run=None)
            shutil.rmtree(output, ignore_errors=True)
        if output.exists():
            output.rename(_free_name(output))


def drop_useless_checkpoints(output: Path, max_steps: int | None) -> int:
    """Delete checkpoints whose writing was cut short, and those of the last step.

    The trainer writes `trainer_state.json` after weights, optimizer and random states: a
    checkpoint in which it can be read is complete. Continued from the last step, the trainer
    would take one step too many.

    Args:
        output: The training's output directory.
        max_steps: Steps of the whole training, None if unknown.

    Returns:
        Step of the last checkpoint that is left, 0 if there is none.
    """
    last = 0
    for step, path in _checkpoints(output):
        complete = "global_step" in read_json(path / "trainer_state.json")
        if complete and (max_steps is None or step < max_steps):
            last = step
        else:
            shutil.rmtree(path)
    return last


def run_digest(config: RunConfig, data: str) -> str:
    """Digest everything that a trained adapter depends on.

    Args:
        config: The run.
        data: Digest of the data files.
    """
    from axolotl_alphalora import __version__

    return digest(
        __version__,
        config.path.read_text(encoding="utf-8"),
        data,
        json.dumps(_fingerprint(Path(config.base_model), ("*.json", "*.safetensors", "*.bin"))),
    )


def evaluation_digest(config: RunConfig, data: str) -> str:
    """Digest what an evaluation depends on: the data, the adapter's files and the limit on tokens.

    Args:
        config: The run.
        data: Digest of the data files.
    """
    files = _fingerprint(config.output_dir, ("adapter_*",))
    return digest(data, json.dumps(files), config.base_model, str(config.sequence_len))


def _fingerprint(directory: Path, patterns: Iterable[str]) -> list[tuple[str, int, int]]:
    paths = sorted(path for pattern in patterns for path in directory.glob(pattern))
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def _checkpoints(output: Path) -> list[tuple[int, Path]]:
    pairs = [(path.name.rpartition("-")[2], path) for path in output.glob("checkpoint-*")]
    return sorted((int(step), path) for step, path in pairs if step.isdigit())


def _free_name(path: Path) -> Path:
    number = 1
    while (free := path.with_name(f"{path.name}.kept-{number}")).exists():
        number += 1
    return free
