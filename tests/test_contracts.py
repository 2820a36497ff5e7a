"""What we rely on of the hosts: a release that moves or changes a name fails here, by that name.

Each name of the boundary files (`hosts/`, `plugin/host.py`) has one check; one without fails.
"""

import ast
import inspect
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import Trainer

from axolotl_alphalora.plugin import host
from helpers.contracts.registry import BOUNDARIES, CHECKS, PACKAGE, names_of, takes

for _file in BOUNDARIES:
    import_module(f"helpers.contracts.{_file}")

INSIDE = {"axolotl": {"plugin/host.py"}, "peft": {"hosts/peft.py"}}
INSIDE["transformers"] = {"hosts/transformers.py"}


def test_other_files_import_only_public_names_from_the_top_of_a_host():
    """And none of Axolotl; nor do they reach for private attributes of torch."""
    for path in PACKAGE.rglob("*.py"):
        check_imports(path.relative_to(PACKAGE))


def check_imports(path: Path) -> None:
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            modules, names = [alias.name for alias in node.names], []
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules, names = [node.module or ""], [alias.name for alias in node.names]
        else:
            private = (
                isinstance(node, ast.Attribute)
                and node.attr.startswith("_")
                and not node.attr.endswith("__")
            )
            if private and path.as_posix() != "hosts/torch.py":
                assert not ast.unparse(node).startswith("torch."), ast.unparse(node)
            continue
        for module in modules:
            top = module.partition(".")[0]
            if path.as_posix() in INSIDE.get(top, ()):
                continue
            assert top != "axolotl", module
            if top in INSIDE:
                assert module == top and not any(name.startswith("_") for name in names), module


def test_trainers_have_what_the_callback_replaces_and_reads():
    takes(Trainer.log, "self", "logs")
    takes(Trainer.training_step, "self", "model", "inputs")
    takes(Trainer._load_optimizer_and_scheduler, "self", "checkpoint")
    assert callable(Trainer.evaluation_loop) and callable(Trainer.is_world_process_zero)
    source = inspect.getsource(Trainer)
    for attribute in (
        "current_gradient_accumulation_steps",
        "self.accelerator",
        "callback_handler",
    ):
        assert attribute in source
    from accelerate import Accelerator

    assert "self.scaler" in inspect.getsource(Accelerator.__init__)
    assert "self.is_deepspeed_enabled" in source and "self.model_wrapped" in source


def test_deepspeed_s_optimizers_have_their_loss_scale():
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    for optimizer in (DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3):
        assert isinstance(optimizer.loss_scale, property)


def test_classes_that_are_known_by_their_paths_are_there():
    import transformers

    from axolotl_alphalora.adapter.layer import FRESH_OUTPUT
    from axolotl_alphalora.spectral import definition, layers

    for path in {*FRESH_OUTPUT, *layers._READERS}:
        module, _, name = path.rpartition(".")
        if find_spec(module.partition(".")[0]) is not None:
            assert isinstance(getattr(import_module(module), name), type), path
    for name in (*definition._WHOLE, *definition._OWN.values()):
        assert isinstance(getattr(transformers, name), type), name


@pytest.mark.parametrize("file", BOUNDARIES)
def test_every_name_of_a_boundary_has_a_check(file):
    names = names_of(file) | (set(host._HOMES) if file == "axolotl" else set())
    assert names
    assert {name for of, name in CHECKS if of == file} == names


@pytest.mark.parametrize(("file", "name"), sorted(CHECKS), ids=str)
def test_the_host_has_it_as_we_rely_on_it(file, name):
    if file == "axolotl" or name in ("OPTIMIZER", "OUTPUT_DIR"):
        pytest.importorskip("axolotl")
    CHECKS[file, name]()
