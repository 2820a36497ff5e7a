"""A minimal YAML for `adapter: alphalora`, validated by the real host with the real plugin."""

from functools import cache

import yaml
from axolotl.integrations.base import PluginManager
from axolotl.integrations.config import merge_input_args
from axolotl.utils.config import validate_config
from axolotl.utils.dict import DictDefault
from click.testing import CliRunner

from axolotl_alphalora import AlphaLoraPlugin
from axolotl_alphalora.cli import alphalora

NAME = "axolotl_alphalora.AlphaLoraPlugin"
GPU = {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 1, "compute_capability": "sm_90"}


def base_yaml(**changes) -> dict:
    settings = {
        "base_model": "./tiny",
        "plugins": [NAME],
        "adapter": "alphalora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_linear": True,
        "datasets": [{"path": "./data.jsonl", "ds_type": "json", "type": "alpaca"}],
        "sequence_len": 64,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": 0.001,
        "optimizer": "adamw_torch",
        "bf16": False,
    }
    return settings | changes


def register(monkeypatch, plugin=None) -> AlphaLoraPlugin:
    """Load the plugin into the host's manager for one test."""
    plugin, manager = plugin or AlphaLoraPlugin(), PluginManager.get_instance()
    monkeypatch.setitem(manager.plugins, NAME, plugin)
    # Building the schema is nearly all of the time that a validation takes.
    monkeypatch.setattr(
        "axolotl.utils.config.merge_input_args", lambda: _schema(*manager.get_input_args())
    )
    return plugin


@cache
def _schema(*_loaded: str) -> tuple:
    """The host's schema for the plugins that are loaded."""
    return merge_input_args()


def validate(capabilities=None, **changes) -> DictDefault:
    """The configuration as the host makes it, optionally for a machine with a GPU."""
    environment = {"torch_version": "2.10.0"} if capabilities else None
    return validate_config(DictDefault(base_yaml(**changes)), capabilities, environment)


def plan(folder, **changes) -> str:
    """What `alphalora plan` prints for a YAML, in one line."""
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(base_yaml(**changes)))
    result = CliRunner().invoke(alphalora, ["plan", str(path)])
    said = " ".join(result.output.split())
    return f"exit {result.exit_code}: {said}"
