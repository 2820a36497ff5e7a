"""What we rely on of names that are written down."""

import inspect
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import (
    BitsAndBytesConfig,
    TrainerCallback,
)

from axolotl_alphalora.hosts import constants
from axolotl_alphalora.hosts import transformers as transformers_names
from helpers.contracts.registry import checks


@checks("constants")
def IGNORED():
    for loss in (nn.functional.cross_entropy, transformers_names.ForCausalLMLoss):
        default = inspect.signature(loss).parameters["ignore_index"].default
        assert default == constants.IGNORED


@checks("constants")
def CHECKPOINT_WRAPPER():
    names = dict(nn.Sequential(checkpoint_wrapper(nn.Linear(1, 1))).named_modules())
    assert f"0.{constants.CHECKPOINT_WRAPPER}".rstrip(".") in names


@checks("constants")
def COMPILE_WRAPPER():
    names = [name for name, _ in torch.compile(nn.Linear(1, 1)).named_parameters()]
    assert f"{constants.COMPILE_WRAPPER}weight" in names


@checks("constants", "CLASSIFIER_HEADS", "SPAN_HEADS")
def heads():
    import peft.peft_model

    source = inspect.getsource(peft.peft_model).replace("'", '"')
    for name, found in (
        ("classifier_module_names", constants.CLASSIFIER_HEADS),
        ("qa_module_names", constants.SPAN_HEADS),
    ):
        listed = ", ".join(f'"{head}"' for head in found)
        assert source.count(f"{name} = [") == source.count(f"{name} = [{listed}]") > 0


@checks("constants")
def QUANTISATION_PACKAGES():
    for method in constants.QUANTISATION_PACKAGES:
        settings = {"quant_method": method} | (
            {"load_in_4bit": True} if method == "bitsandbytes" else {}
        )
        assert transformers_names.AutoHfQuantizer.supports_quant_method(settings), method


@checks("constants")
def DATA_FILES():
    datasets = pytest.importorskip("datasets")
    with TemporaryDirectory() as folder:
        datasets.Dataset.from_dict({"labels": [[1]]}).save_to_disk(folder)
        (entry,) = json.loads((Path(folder) / "state.json").read_text())[constants.DATA_FILES]
        assert (Path(folder) / entry["filename"]).is_file()


@checks("constants")
def NF4():
    """That Axolotl's are the same is in tests/plugin/test_quantization_config.py."""
    found = BitsAndBytesConfig(**constants.NF4)
    assert constants.NF4.items() <= found.to_dict().items()


@checks("constants")
def LORA_ALPHA():
    from peft import LoraConfig

    assert LoraConfig().lora_alpha == constants.LORA_ALPHA


@checks("constants")
def OPTIMIZER():
    from axolotl.utils.schemas.config import AxolotlInputConfig

    default = AxolotlInputConfig.model_fields["optimizer"].default
    assert getattr(default, "value", default) == constants.OPTIMIZER


@checks("constants")
def OUTPUT_DIR():
    from axolotl.utils.schemas.config import AxolotlInputConfig

    assert AxolotlInputConfig.model_fields["output_dir"].default == constants.OUTPUT_DIR


@checks("constants")
def LORA_KERNELS():
    from axolotl.utils.schemas.validation import lora_kernels_auto_enable

    for key in constants.LORA_KERNELS:
        assert lora_kernels_auto_enable({"adapter": "lora"}.get)
        assert not lora_kernels_auto_enable({"adapter": "lora", key: False}.get), key


@checks("constants")
def SCHEDULER_FILE():
    from transformers.trainer import SCHEDULER_NAME

    assert constants.SCHEDULER_FILE == SCHEDULER_NAME


@checks("constants")
def TRL_CONSOLE():
    callbacks = pytest.importorskip("trl.trainer.callbacks")
    assert issubclass(getattr(callbacks, constants.TRL_CONSOLE), TrainerCallback)


@checks("constants", "TRL_REFERENCE", "TRL_TRAINED")
def reference():
    """That its values are those of the trained one is in tests/trainer/test_trainers.py."""
    trainer = pytest.importorskip("trl.trainer.dpo_trainer")
    source = inspect.getsource(trainer)
    assert f'default_config = model.peft_config["{constants.TRL_TRAINED}"]' in source
    assert f'add_adapter("{constants.TRL_REFERENCE}", default_config)' in source
