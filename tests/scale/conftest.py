"""The runs of `ranks.py`, made once."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


@dataclass
class Runs:
    """What `ranks.py` left behind, by the name of the run."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def of(self, name: str) -> Path:
        """The run's folder; a run that failed fails the test that asks for it."""
        error = self.folder / name / "error.txt"
        if error.exists():
            pytest.fail(f"{name}: {error.read_text()}")
        return self.folder / name

    def report(self, name: str) -> dict:
        """`losses` of all steps, those before a resume too; `steps` that the run itself made;
        `held`, the elements of the adapter that rank 0 keeps; `base`, the bytes of the base's
        linear layers, by the class of the weights."""
        return json.loads((self.of(name) / "report.json").read_text())

    def gradients(self, name: str) -> dict[str, torch.Tensor]:
        return torch.load(self.of(name) / "gradients.pt")

    def logits(self, name: str) -> torch.Tensor:
        return torch.load(self.of(name) / "logits.pt")

    def adapter(self, name: str, saved: str = "final") -> dict[str, torch.Tensor]:
        return load_file(self.of(name) / saved / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, fresh_process) -> Runs:
    folder = tmp_path_factory.mktemp("scale")
    script = Path(__file__).parent / "ranks.py"
    with (folder / "log.txt").open("w") as log:
        done = fresh_process(
            *("-W", "ignore", script, folder),
            check=False,
            capture_output=False,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    assert done.returncode == 0, (folder / "log.txt").read_text()[-5000:]
    return Runs(folder)
