"""Every YAML that we ship passes Axolotl's own validation with the plugin loaded."""

from pathlib import Path

import pytest
import yaml
from axolotl.utils.config import validate_config
from axolotl.utils.dict import DictDefault

from axolotl_alphalora.planning import plan_request, read_block
from helpers import settings

FOLDER = Path(__file__).parents[1] / "example_configs"
EXAMPLES = sorted(FOLDER.glob("*.yml"))


def load(path, **changes) -> DictDefault:
    capabilities = None if path.stem == "cpu" else settings.GPU
    environment = {"torch_version": "2.14.0"} if capabilities else None
    cfg = DictDefault(yaml.safe_load(path.read_text()) | changes)
    return validate_config(cfg, capabilities, environment)


def test_there_is_one_of_each_kind():
    assert [path.stem for path in EXAMPLES] == [
        "cpu",
        "full-precision",
        "qlora-32b-two-gpus",
        "qlora-8b",
    ]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_host_accepts_it(path, monkeypatch):
    settings.register(monkeypatch)
    cfg = load(path)
    assert cfg.adapter == "alphalora"
    assert bool(cfg.load_in_4bit) == path.stem.startswith("qlora")
    assert bool(cfg.fsdp_config) == path.stem.endswith("two-gpus")
    request = plan_request(cfg, read_block(cfg))
    assert request.targets.linear or len(request.targets.modules) == 7
    assert request.rank == 8


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_no_key_is_one_that_the_host_would_drop(path, monkeypatch):
    settings.register(monkeypatch)
    kept = load(path)
    for key in yaml.safe_load(path.read_text()):
        assert key in kept, f"{path.name}: {key}"
