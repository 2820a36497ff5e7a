"""`alphalora plan` in this process, and small YAMLs for it."""

import yaml
from click.testing import CliRunner

from axolotl_alphalora.cli import alphalora


def plan(*arguments):
    return CliRunner().invoke(alphalora, ["plan", *map(str, arguments)])


def config(tmp_path, model, **changes):
    path = tmp_path / "config.yml"
    settings = {
        "base_model": str(model),
        "adapter": "alphalora",
        "lora_r": 4,
        "lora_target_modules": ["q_proj", "up_proj"],
        "alphalora": {"total_experts": 10, "max_experts": 4},
    }
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def linear(folder, model, **block):
    """A YAML for all linear layers with a block."""
    path = folder / "config.yml"
    settings = {"base_model": str(model), "lora_target_linear": True, "lora_r": 4}
    path.write_text(yaml.safe_dump(settings | {"alphalora": block}, sort_keys=False))
    return path


def labels(rows):
    """The labels of a comparison's columns."""
    return [row["label"] for row in rows]
