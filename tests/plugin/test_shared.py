"""In a launch of several processes one plans, and all get its plan or its error."""

import json
import os
from pathlib import Path

import pytest
import torch.distributed as dist
from axolotl.utils.dict import DictDefault
from safetensors.torch import load_file, save_file

from axolotl_alphalora.plugin.loading import Allocation
from axolotl_alphalora.plugin.shared import is_first_process, on_one_process
from axolotl_alphalora.spectral import CheckpointWeights
from helpers.models import tiny_llama
from helpers.worlds import in_a_world


def plan(config: str) -> dict:
    """The plugin's own step before the model is loaded, counting the matrices that are read."""
    read = []
    tensor = CheckpointWeights.tensor
    CheckpointWeights.tensor = lambda self, name: (read.append(name), tensor(self, name))[1]
    allocation = Allocation(DictDefault(json.loads(Path(config).read_text())))
    return {"counts": allocation.counts, "plan": allocation.plan, "read": len(read)}


def die(config: str) -> dict:
    """The working rank is killed at its work."""
    return {"result": on_one_process(lambda: os._exit(9))}


def fail_oddly(config: str) -> dict:
    """An error that cannot be pickled."""

    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    def work():
        raise Odd("this", "that")

    return {"result": on_one_process(work)}


ACTIONS = {"plan": plan, "die": die, "fail_oddly": fail_oddly}


def act(what: str, folder: Path, config: Path | str) -> None:
    """Be one of the ranks, and write down what came of it."""
    os.environ["ALPHALORA_CACHE"] = str(folder / "cache")
    try:
        found = ACTIONS[what](config)
    except Exception as error:
        found = {"type": type(error).__name__, "error": str(error)}
    (folder / f"rank-{dist.get_rank()}.json").write_text(json.dumps(found))


def on_two_ranks(what: str, folder: Path, config: Path | str = "") -> tuple[list[int], list]:
    """The exit codes of two ranks and what each wrote down, None if nothing.

    Axolotl's own command line asks the GPUs of several ranks whether they reach each other, so this
    starts where the plugin's work does.
    """
    codes = in_a_world(2, folder / "store", lambda: act(what, folder, config), folder / "error.txt")
    files = [folder / f"rank-{rank}.json" for rank in range(2)]
    return codes, [json.loads(f.read_text()) if f.exists() else None for f in files]


@pytest.fixture
def config(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    path = tmp_path / "config.json"
    settings = {
        "base_model": str(tmp_path / "model"),
        "output_dir": str(tmp_path / "out"),
        "adapter": "alphalora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_linear": True,
        "alphalora": {"experts_per_block": 3},
    }
    path.write_text(json.dumps(settings))
    return path


def test_one_rank_reads_and_both_have_the_plan(config, tmp_path):
    codes, (first, second) = on_two_ranks("plan", tmp_path, config)
    assert codes == [0, 0]
    assert first["counts"] == second["counts"]
    assert first["plan"] == second["plan"]
    assert len(first["counts"]) == 14
    assert (first["read"], second["read"]) == (14, 0)


def test_a_failure_reaches_both_ranks_as_the_same_error(config, tmp_path):
    file = tmp_path / "model" / "model.safetensors"
    stored = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    stored[name][3, 4] = float("nan")
    save_file(stored, file, metadata={"format": "pt"})
    codes, (first, second) = on_two_ranks("plan", tmp_path, config)
    assert codes == [0, 0]
    assert first == second
    assert first["type"] == "ValueError"
    assert f"tensor '{name}' of {file}: 1 of 8192 entries are NaN" in first["error"]


def test_an_error_that_cannot_be_sent_arrives_as_its_text(tmp_path):
    _, (first, second) = on_two_ranks("fail_oddly", tmp_path)
    assert first == second == {"type": "RuntimeError", "error": "Odd: this and that"}


def test_a_killed_rank_leaves_an_error_and_no_hang(tmp_path):
    codes, (first, second) = on_two_ranks("die", tmp_path)
    assert codes[0] == 9
    assert first is None
    assert "error" in second


def test_a_single_process_works_for_itself():
    assert is_first_process()
    assert on_one_process(lambda: 5) == 5
    with pytest.raises(KeyError):
        on_one_process(lambda: {}["missing"])
