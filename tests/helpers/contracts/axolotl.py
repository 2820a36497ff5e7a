"""What we rely on of Axolotl."""

import inspect
import re
import tomllib
from collections.abc import Callable
from importlib.util import find_spec

from axolotl_alphalora.plugin import host
from helpers.contracts.registry import PACKAGE, checks, takes, tiny


def hosted(name: str) -> Callable:
    return getattr(host, name)


SIGNATURES = {
    "get_logger": ("name",),
    "load_cfg": ("config", "kwargs"),
    "determine_last_checkpoint": ("cfg",),
    "load_model_and_tokenizer": ("cfg",),
    "load_tokenizer": ("cfg",),
    "get_device_type": (),
    "init_distributed_state": (),
    "is_distributed": (),
    "load_and_prepare_datasets": ("tokenizer", "cfg", "split"),
    "datasets_with_name_generator": ("dataset_configs",),
    "load_dataset_with_config": ("dataset_config", "use_auth_token"),
    "handle_long_seq_in_dataset": ("dataset", "sequence_len", "cfg"),
    "get_dataset_wrapper": (
        "dataset_config",
        "tokenizer",
        "cfg",
        "dataset_base_type",
        "dataset",
        "dataset_prompt_style",
    ),
}
for _name, _parameters in SIGNATURES.items():
    checks("axolotl", _name)(lambda n=_name, p=_parameters: takes(hosted(n), *p))


@checks("axolotl")
def AdapterCapabilities():
    found = hosted("AdapterCapabilities")(name="x", lora_like=False, relora=False)
    assert (found.name, found.lora_like, found.relora) == ("x", False, False)


@checks("axolotl")
def BasePlugin():
    plugin = hosted("BasePlugin")
    takes(plugin.register, "self", "cfg")
    takes(plugin.get_input_args, "self")
    takes(plugin.get_adapter_capabilities, "self")
    takes(plugin.load_datasets, "self", "cfg", "preprocess")
    takes(plugin.pre_model_load, "self", "cfg")
    takes(plugin.post_model_build, "self", "cfg", "model")
    takes(plugin.load_adapter, "self", "model", "cfg", "inference", "config_only")
    takes(plugin.add_callbacks_post_trainer, "self", "cfg", "trainer")


@checks("axolotl")
def PluginManager():
    manager = hosted("PluginManager")
    takes(manager.supports_adapter, "self", "adapter")
    assert isinstance(manager.get_instance().plugins, dict)


@checks("axolotl")
def DictDefault():
    found = hosted("DictDefault")({"a": {"b": 1}})
    assert found.missing is None and found.a.b == 1


@checks("axolotl")
def model_loading():
    takes(
        hosted("model_loading").prepare_model_for_kbit_training,
        "model",
        "use_gradient_checkpointing",
    )


@checks("axolotl")
def bnb_4bit_skip_modules():
    try:
        found = hosted("bnb_4bit_skip_modules")
    except ImportError:  # Axolotl 0.20, for which `quantization` has a copy of its one case
        return
    assert "out_proj" in found("falcon_h1")


@checks("axolotl")
def fsdp2_qlora():
    """Whether the patches take on the installed torch is said at a run, by the same mark."""
    module = hosted("fsdp2_qlora")
    for name in ("apply_init_sharded_param_patch", "apply_init_unsharded_param_patch"):
        assert f"{name}._axolotl_patched = True" in inspect.getsource(getattr(module, name))


@checks("axolotl")
def frozen_parts():
    assert "vision_tower" in hosted("frozen_parts")


@checks("axolotl")
def peft_task_type():
    assert hosted("peft_task_type")(tiny()) == "CAUSAL_LM"


@checks("axolotl")
def FileLockLoader():
    loader = hosted("FileLockLoader")
    takes(loader.__init__, "self", "cfg")
    takes(loader.load, "self", "load_fn")
    takes(loader.cleanup, "self")


@checks("axolotl")
def parse_dataset_type():
    assert hosted("parse_dataset_type")("chat_template.v2:x") == ("chat_template.v2", "x")


@checks("axolotl")
def lm_eval_command():
    takes(hosted("lm_eval_command").callback, "config", "cloud")


@checks("axolotl", "OLDEST", "NEWEST", "REQUIREMENT", "check_host")
def releases():
    """The installed one is among those that we know, and these are what the extra installs."""
    from importlib.metadata import version

    from packaging.version import Version

    assert Version(host.OLDEST) <= Version(version("axolotl"))
    assert Version(version("axolotl")).release[:2] <= Version(host.NEWEST).release
    host.check_host()
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["axolotl"] == [host.REQUIREMENT]


@checks("axolotl")
def has_printed_banner():
    from axolotl.cli import art

    before = art.HAS_PRINTED_LOGO
    try:
        for printed in (False, True):
            art.HAS_PRINTED_LOGO = printed
            assert host.has_printed_banner() is printed
    finally:
        art.HAS_PRINTED_LOGO = before
    assert "HAS_PRINTED_LOGO = True" in inspect.getsource(art.print_axolotl_text_art)


@checks("axolotl")
def PREPARED_IN():
    from axolotl.common.const import DEFAULT_DATASET_PREPARED_PATH

    assert DEFAULT_DATASET_PREPARED_PATH == host.PREPARED_IN


@checks("axolotl", "FP32_STORAGE_MODELS", "INT8_SKIPPED")
def copied_for_quantised_bases():
    """The host asks for no other model types where it sets a quantisation up."""
    source = inspect.getsource(hosted("model_loading").ModelLoader._set_quantization_config)
    four, eight = source.split('load_in_4bit": True', 1)[1].split('load_in_8bit": True', 1)
    listed = re.search(r"model_config_type in \[([^]]*)\]", four)
    assert {*re.findall(r'"(\w+)"', listed[1])} == host.FP32_STORAGE_MODELS
    cases = re.findall(r'model_config_type == "(\w+)".*?modules"\] = \["(\w+)"\]', eight, re.S)
    assert {kind: [skipped] for kind, skipped in cases} == host.INT8_SKIPPED


@checks("axolotl")
def running_verb():
    """The command line is a click group whose commands are our verbs, and each has a module."""
    from axolotl.cli.main import cli

    from axolotl_alphalora.plugin.verbs import RUNS_ADAPTER, WHOLE_MODEL

    for verb in (*RUNS_ADAPTER, *WHOLE_MODEL, "train"):
        command = cli.commands[verb.replace("_", "-")]
        assert find_spec(f"axolotl.cli.{verb}") is not None
        with cli.make_context("axolotl", [command.name], resilient_parsing=True) as group:
            with command.make_context(command.name, [], parent=group, resilient_parsing=True):
                assert host.running_verb() == verb
    assert host.running_verb() is None
