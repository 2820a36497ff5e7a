"""A plan exported as a plain LoRA, trained by Axolotl's own adapter."""

import json

import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

from axolotl_alphalora.allocation import Plan
from axolotl_alphalora.cli import alphalora

SHORT = {"max_steps": 1, "save_steps": 1, "val_set_size": 0, "eval_steps": ...}


def test_an_exported_lora_trains_with_the_planned_ranks(host, tmp_path):
    block = {"allocation": {"strategy": "counts", "experts": {"k_proj": 0, "up_proj": 3, ".*": 2}}}
    config = host.write(tmp_path, alphalora=block, **SHORT)
    written = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(written | {"alphalora": block}, sort_keys=False))
    plan, lora = tmp_path / "plan.json", tmp_path / "lora.yml"
    for options in (["--output", plan], ["--as-lora", "--output", lora]):
        done = CliRunner().invoke(alphalora, ["plan", str(config), *map(str, options)])
        assert done.exit_code == 0, done.output
    keys = yaml.safe_load(lora.read_text())
    gone = dict.fromkeys(host.base_config().keys() - keys.keys(), ...)
    run = host.train(tmp_path, **keys, **gone)
    out = tmp_path / "out-lora"
    assert run.config["output_dir"].endswith("-lora") and not run.out.exists()
    assert json.loads((out / "adapter_config.json").read_text())["peft_type"] == "LORA"
    weights = load_file(out / "adapter_model.safetensors")
    ranks = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): len(tensor)
        for name, tensor in weights.items()
        if name.endswith(".lora_A.weight")
    }
    numbers = Plan.load(plan).numbers
    assert ranks == {name: 4 * number for name, number in numbers.items() if number}
