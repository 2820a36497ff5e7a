"""The quickstart from end to end: each stage starts where an earlier run left off."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from axolotl_alphalora.allocation import Plan
from axolotl_alphalora.files import cache_root
from axolotl_alphalora.quickstart.child import Stage, run_stage
from axolotl_alphalora.quickstart.config import (
    CONFIG_FILE,
    DEFAULT_STEPS,
    RunConfig,
    is_edited,
    read_config,
    write_config,
)
from axolotl_alphalora.quickstart.console import say
from axolotl_alphalora.quickstart.data import HELD_OUT_FILE, TRAIN_FILE, write_data
from axolotl_alphalora.quickstart.files import QuickstartError, locked, read_json, write_json
from axolotl_alphalora.quickstart.model import prepare_model
from axolotl_alphalora.quickstart.state import State, evaluation_digest, run_digest

INTERRUPTED = 130
PLAN_FILE = "plan.json"
EVALUATION_FILE = "evaluation.json"


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
        with locked(directory / ".lock", f"The directory {directory}") as lock:
            quickstart = _Quickstart(directory, lock, console)
            quickstart.run(model, steps, json_path.expanduser().resolve() if json_path else None)
    except KeyboardInterrupt:
        say(console, "\nInterrupted. Run the same command again to continue.")
        raise SystemExit(INTERRUPTED) from None


class _Quickstart:
    """One invocation: the directory it has locked, and how long its stages took."""

    def __init__(self, directory: Path, lock: int, console: Console) -> None:
        self.directory = directory
        self.lock = lock
        self.console = console
        self.state = State(directory)
        self.seconds: dict[str, float] = {}
        self.skipped: list[str] = []

    def run(self, model: str | None, steps: int, json_path: Path | None) -> None:
        """Run all stages, skipping what is done."""
        with self._stage("1/5 model", "model"):
            source = self._source(model)
            base_model = prepare_model(source, None, self.console)
        with self._stage("2/5 data and YAML", "data"):
            data = write_data(self.directory)
            config = write_config(self.directory, base_model, steps)
            self._announce(config)
        with self._stage("3/5 plan: experts per block, from the weights' spectra", "plan"):
            run = run_digest(config, data)
            plan = self._plan(config, run)
        with self._stage(f"4/5 axolotl train {config.path}", "train"):
            self._train(config, run)
        with self._stage("5/5 evaluation: the adapter, reloaded with PEFT", "evaluate"):
            self._evaluate(config, data)
        from axolotl_alphalora.quickstart.report import print_report, summary

        evaluation = read_json(self.directory / EVALUATION_FILE)
        print_report(config, evaluation, self.console)
        if json_path:
            json_path.parent.mkdir(parents=True, exist_ok=True)
            write_json(json_path, summary(config, plan, evaluation, self.seconds, self.skipped))

    @contextmanager
    def _stage(self, heading: str, name: str) -> Iterator[None]:
        say(self.console, f"\n{heading}", style="bold")
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start

    def _source(self, model: str | None) -> str | None:
        path = self.directory / CONFIG_FILE
        if not is_edited(path):
            return model
        edited = read_config(path).base_model
        return None if Path(edited).is_relative_to(cache_root()) else edited

    def _announce(self, config: RunConfig) -> None:
        for name in (TRAIN_FILE, HELD_OUT_FILE):
            self._say(str(self.directory / name))
        note = ""
        if config.edited:
            note = (
                " was edited and is kept as it is: it decides, not --model and --steps. "
                "Delete it to have it written anew."
            )
        self._say(f"{config.path}{note}")

    def _plan(self, config: RunConfig, run: str) -> Plan:
        from axolotl_alphalora.report.terminal import print_plan

        path = self.directory / PLAN_FILE
        if not self.state.is_done("planned", run, path):
            command = [*_python("axolotl_alphalora.quickstart.plan"), str(config.path), str(path)]
            self._run("planning", command, config)
            self.state.note(planned=run)
        plan = Plan.load(path)
        print_plan(plan, self.console)
        return plan

    def _train(self, config: RunConfig, run: str) -> None:
        if self.state.is_trained(run, config):
            self._skip("train", f"{config.output_dir} (trained before)")
            return
        step = self.state.begin(run, config)
        if step:
            self._say(f"continuing from step {step}")
        command = [*_python("axolotl.cli.main"), "train", str(config.path), "--launcher", "python"]
        self._run("training", command, config, total=config.max_steps)
        self.state.note(trained=True)

    def _evaluate(self, config: RunConfig, data: str) -> None:
        what = evaluation_digest(config, data)
        result = self.directory / EVALUATION_FILE
        if self.state.is_done("evaluated", what, result):
            self._skip("evaluate", f"{result} (evaluated before)")
            return
        command = [*_python("axolotl_alphalora.quickstart.evaluate"), str(config.output_dir)]
        command += ["--data", str(self.directory / HELD_OUT_FILE), "--json", str(result)]
        command += ["--sequence-len", str(config.sequence_len)]
        self._run("evaluating", command, config)
        self.state.note(evaluated=what)

    def _run(
        self, name: str, command: list[str], config: RunConfig, total: int | None = None
    ) -> None:
        stage = Stage(name, command, self.directory / f"{name}.log", total, self.lock)
        run_stage(stage, self.console, offline=Path(config.base_model).is_dir())

    def _skip(self, name: str, note: str) -> None:
        self.skipped.append(name)
        self._say(note)

    def _say(self, text: str) -> None:
        say(self.console, f"  {text}")


def _python(module: str) -> list[str]:
    return [sys.executable, "-m", module]
