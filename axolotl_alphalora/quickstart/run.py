"""The quickstart from end to end: each stage starts where an earlier run left off.

What is done is noted in `state.json`: for each stage, the digest of what its result was made from.
A stage's note is taken away before it starts and written once it has ended well, so that nothing
half-written is taken for whole. An interrupted training is continued by Axolotl's own
`auto_resume_from_checkpoints`; the plugin skips checkpoints whose writing was cut short.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import __version__
from ..allocation import Plan
from ..files import ADAPTER_WEIGHTS, PROBE, cache_root, write_whole
from ..report.terminal import print_as_is, print_plan
from .config import (
    ADAPTER_DIRECTORY,
    CONFIG_FILE,
    DEFAULT_STEPS,
    PREPARED_DIRECTORY,
    RunConfig,
    is_edited,
    read_config,
    write_config,
)
from .model import prepare_model
from .process import QuickstartError, locked, run_python
from .rows import HELD_OUT_FILE, TRAIN_FILE, write_rows

INTERRUPTED = 130
_STATE_FILE = "state.json"
_OUTPUT = "output"  # notes whose checkpoints are in the output directory
_DIGESTED = (".safetensors", ".bin", ".json")
_NAMES = {"plan": "planning", "train": "training", "evaluate": "evaluating"}
_EDITED = (
    " was edited and is kept as it is: it decides, not --model and --steps. "
    "Delete it to have it written anew."
)
_PACKAGES = ("axolotl-alphalora", "axolotl", "peft", "torch", "transformers")
_EXAMPLE = {
    "Instruction": "instruction",
    "Input": "input",
    "Base model": "before",
    "With adapter": "after",
    "Expected": "expected",
}


def run_quickstart(
    *,
    model: str | None = None,
    steps: int = DEFAULT_STEPS,
    directory: Path,
    json_path: Path | None = None,
    console: Console,
) -> None:
    """Train AlphaLoRA on a real model, reload the adapter and show what came of it.

    Args:
        model: Model directory or hub id; None for the bundled SmolLM2-135M-Instruct.
        steps: Optimizer steps.
        directory: Where everything except the converted model goes; created if missing.
        json_path: Also write a machine-readable summary to this file.
        console: Where to print.

    Raises:
        QuickstartError: A stage cannot go on; the message says what to do.
        SystemExit: With status 130, after an interrupt.
    """
    if steps < 1:
        raise QuickstartError(f"--steps {steps}: give at least 1.")
    directory = directory.expanduser().resolve()
    try:
        with locked(directory, console) as lock:
            found = Quickstart(directory, lock, console).run(model, steps)
            if json_path:
                _write_json(json_path.expanduser(), found)
    except KeyboardInterrupt:
        print_as_is("\nInterrupted. Run the same command again to continue.", console)
        raise SystemExit(INTERRUPTED) from None


class Quickstart:
    """One invocation: the directory it has locked, and how long its stages took.

    Args:
        directory: The directory, absolute.
        lock: Descriptor of its lock.
        console: Where to print.
    """

    def __init__(self, directory: Path, lock: int, console: Console) -> None:
        self.directory, self.lock, self.console = directory, lock, console
        self.rows = [directory / TRAIN_FILE, directory / HELD_OUT_FILE]
        self.done = _read_json(directory / _STATE_FILE)
        self.seconds: dict[str, float] = {}
        self.skipped: list[str] = []

    def run(self, model: str | None, steps: int) -> dict[str, Any]:
        """Run all stages, skipping what is done, and return the summary."""
        with self._timed("1/5 model", "model"):
            base_model = prepare_model(self._source(model), self.console)
        with self._timed("2/5 data and YAML", "data"):
            write_rows(self.directory)
            config = write_config(self.directory, base_model, steps)
            for line in (*self.rows, f"{config.path}{_EDITED if config.edited else ''}"):
                self._say(line)
        ours = (self.directory, config.output_dir)
        own = [_stats(path, leave=ours) for path in config.data if path not in self.rows]
        made_from = _digest(__version__, config.path, *self.rows, Path(config.base_model), *own)
        with self._timed("3/5 plan: experts per block, from the weights' spectra", "plan"):
            plan = self.plan(config, made_from)
            print_plan(plan, self.console)
        with self._timed(f"4/5 axolotl train {config.path}", "train"):
            self.train(config, made_from)
        with self._timed("5/5 evaluation: the adapter, reloaded with PEFT", "evaluate"):
            evaluation = self.evaluate(config)
        _print_results(config, evaluation, self.console)
        return {
            **_summary(config, plan),
            **evaluation,
            "seconds": {stage: round(value, 2) for stage, value in self.seconds.items()},
            "skipped": self.skipped,
            "versions": {
                "python": platform.python_version(),
                **{package: version(package) for package in _PACKAGES},
            },
        }

    def _source(self, model: str | None) -> str | None:
        if not is_edited(self.directory / CONFIG_FILE):
            return model
        edited = read_config(self.directory / CONFIG_FILE).base_model
        return None if Path(edited).is_relative_to(cache_root()) else edited

    def plan(self, config: RunConfig, made_from: str) -> Plan:
        """Plan the experts, with the command that the user has too."""
        result = self.directory / "plan.json"
        if not self._is_done("plan", made_from, result):
            command = ["axolotl.cli.main", "alphalora", "plan", config.path, "--output", result]
            self._do("plan", made_from, command, config)
        return Plan.load(result)

    def train(self, config: RunConfig, made_from: str) -> None:
        """Start or continue the training, unless its adapter is there."""
        output = config.output_dir
        if self._is_done("train", made_from, output / ADAPTER_WEIGHTS):
            self._skip("train", f"{output} (trained before)")
            return
        if self.done.get(_OUTPUT) != made_from:
            self._drop_checkpoints(config)
            self._note(_OUTPUT, made_from)
        # Axolotl takes any file in here for a complete dataset, and its name for its content.
        shutil.rmtree(self.directory / PREPARED_DIRECTORY, ignore_errors=True)
        whole = [path.parent.name for path in output.glob("checkpoint-*/trainer_state.json")]
        if whole:
            last = max(int(name.rpartition("-")[2]) for name in whole)
            self._say(f"continuing from step {last}")
        (output / PROBE).unlink(missing_ok=True)  # of an adapter that is trained anew
        command = ["axolotl.cli.main", "train", config.path, "--launcher", "python"]
        self._do("train", made_from, command, config, total=config.max_steps)

    def evaluate(self, config: RunConfig) -> dict[str, Any]:
        """Measure the adapter and write its probe, unless that was done with these very files."""
        result = self.directory / "evaluation.json"
        limit, bits = str(config.sequence_len), str(config.bits)
        made_from = _digest(*self.rows, config.output_dir, config.base_model, limit, bits)
        if self._is_done("evaluate", made_from, result, config.output_dir / PROBE):
            self._skip("evaluate", f"{result} (evaluated before)")
        else:
            program = f"{__package__}.evaluate"
            command = [program, config.output_dir, self.rows[1], limit, bits, result]
            self._do("evaluate", made_from, command, config)
        return _read_json(result)

    def _drop_checkpoints(self, config: RunConfig) -> None:
        """Make Axolotl start anew: it would continue from the checkpoints of any run."""
        checkpoints = sorted(config.output_dir.glob("checkpoint-*"))
        ours = config.output_dir == self.directory / ADAPTER_DIRECTORY and _OUTPUT in self.done
        if checkpoints and not ours:
            raise QuickstartError(
                f"`output_dir: {config.output_dir}` holds checkpoints of another run, from which "
                f"Axolotl would continue. Empty it, or name another directory in {config.path}."
            )
        if checkpoints:
            self._note(_OUTPUT, None)  # what is half deleted belongs to no run
        for path in checkpoints:
            shutil.rmtree(path)

    def _is_done(self, stage: str, made_from: str, *results: Path) -> bool:
        return self.done.get(stage) == made_from and all(path.is_file() for path in results)

    def _do(
        self, stage: str, made_from: str, command: list[Any], config: RunConfig, **options: Any
    ) -> None:
        self._note(stage, None)
        run_python(
            ["-m", *map(str, command)],
            self.directory / f"{_NAMES[stage]}.log",
            self.console,
            name=_NAMES[stage],
            lock=self.lock,
            offline=Path(config.base_model).is_dir(),
            **options,
        )
        self._note(stage, made_from)

    def _skip(self, stage: str, note: str) -> None:
        self.skipped.append(stage)
        self._say(note)

    def _say(self, text: object) -> None:
        print_as_is(f"  {text}", self.console)

    def _note(self, key: str, made_from: str | None) -> None:
        self.done[key] = made_from
        _write_json(self.directory / _STATE_FILE, self.done)

    @contextmanager
    def _timed(self, heading: str, stage: str) -> Iterator[None]:
        print_as_is(f"\n{heading}", self.console, "bold")
        start = time.monotonic()
        yield
        self.seconds[stage] = time.monotonic() - start


def _print_results(config: RunConfig, evaluation: dict[str, Any], console: Console) -> None:
    """Show losses, one answer, where the files are and what to do next."""
    tokens, rows = evaluation["answer_tokens"], evaluation["rows"]
    table = Table(title="Held-out loss per answer token", caption=f"{rows} rows, {tokens} tokens")
    table.add_column("skill")
    for heading in ("base model", "with adapter"):
        table.add_column(heading, justify="right")
    for task, loss in evaluation["held_out_loss_by_task"].items():
        table.add_row(escape(task), f"{loss['before']:.3f}", f"{loss['after']:.3f}")
    loss = evaluation["held_out_loss"]
    table.add_section()
    table.add_row("[bold]all", f"[bold]{loss['before']:.3f}", f"[bold]{loss['after']:.3f}")
    console.print(table)
    print_as_is("\nA held-out prompt", console)
    for label, key in _EXAMPLE.items():
        if text := " ".join(evaluation["example"][key].split()):
            print_as_is(f"  {label + ':':<14}{text}", console)
    path, adapter, directory = config.path, config.output_dir, config.path.parent
    # `uv run` sets this; outside it its environment is not on the path.
    run = "python -m uv run --extra quickstart " if "UV" in os.environ else ""
    print_as_is(
        f"""
Files
  {path}  the YAML, with a comment on every option
  {adapter}  the adapter, with {PROBE} for `alphalora probe`
  {directory}  everything else: data, logs, results

Next: talk to it, or edit the YAML (your model, your data) and run this again
  {run}axolotl inference {path} --lora-model-dir {adapter} --launcher python
  {run}axolotl alphalora quickstart --dir {directory}""",
        console,
    )


def _summary(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """What was run, for machines."""
    scores = {unit.name: unit.score for unit in plan.units}
    return {
        "model": config.base_model,
        "config": str(config.path),
        "config_edited": config.edited,
        "adapter": str(config.output_dir),
        "steps": config.max_steps,
        "plan": {
            "strategy": plan.strategy,
            "total_experts": plan.total_experts,
            "trainable_parameters": plan.trainable_parameters,
            "blocks": [
                {"name": block, "score": scores.get(block), "experts": number}
                for block, number in plan.block_numbers.items()
            ],
        },
    }


def _write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing or damaged file counts as an empty one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _digest(*parts: str | Path) -> str:
    """Digest texts, files, and directories by their weights' and settings' sizes and times."""
    sha = sha256()
    for part in parts:
        content = str(part).encode()
        if isinstance(part, Path) and part.is_file():
            content = part.read_bytes()
        elif isinstance(part, Path) and part.is_dir():
            files = sorted(path for path in part.iterdir() if path.suffix in _DIGESTED)
            files = [path for path in files if path.name != PROBE]  # written from the others
            content = _stats(*files).encode()
        sha.update(sha256(content).digest())
    return sha.hexdigest()[:16]


def _stats(*paths: Path, leave: Sequence[Path] = ()) -> str:
    """Names, sizes and times of files, and of all in directories but for what some others hold."""
    files = [
        file
        for path in paths
        for file in (
            [one for one in sorted(path.rglob("*")) if not any(map(one.is_relative_to, leave))]
            if path.is_dir()
            else [path]
        )
        if file.is_file()
    ]
    return json.dumps([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files])
