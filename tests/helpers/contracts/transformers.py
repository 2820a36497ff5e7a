"""What we rely on of transformers."""

import inspect

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
)
from transformers.quantizers.base import HfQuantizer

from axolotl_alphalora.hosts import transformers as transformers_names
from helpers.contracts.registry import checks, takes, tiny
from helpers.models import tiny_llama_config


@checks(
    "transformers",
    "get_model_conversion_mapping",
    "WeightConverter",
    "WeightRenaming",
    "rename_source_key",
)
def conversion():
    """tests/spectral/test_definition.py converts real checkpoints by them."""
    names = transformers_names
    takes(names.get_model_conversion_mapping, "model")
    takes(
        names.rename_source_key,
        "source_key",
        "weight_renamings",
        "weight_converters",
        "base_model_prefix",
        "meta_state_dict",
    )
    for kind in (names.WeightConverter, names.WeightRenaming):
        takes(kind.add_tensor, "self", "target_key", "source_key", "source_pattern", "future")
        takes(kind.convert, "self", "layer_name", "model", "config")
        takes(kind.__init__, "self", "source_patterns", "target_patterns")
    model = tiny()
    state = model.state_dict()
    for key in state:
        assert names.rename_source_key(key, [], [], model.base_model_prefix, state) == (key, None)


@checks("transformers")
def dot_natural_key():
    assert sorted(["a.10.b", "a.2.b"], key=transformers_names.dot_natural_key)[0] == "a.2.b"


@checks("transformers")
def is_deepspeed_zero3_enabled():
    assert not transformers_names.is_deepspeed_zero3_enabled()


@checks("transformers", "LOSS_MAPPING", "ForCausalLMLoss")
def losses():
    loss = transformers_names.LOSS_MAPPING[tiny().loss_type]
    assert loss is transformers_names.ForCausalLMLoss
    takes(loss, "logits", "labels", "num_items_in_batch")


class Recomputed(transformers_names.GradientCheckpointingLayer):
    def forward(self, x):
        return x + 1


@checks("transformers", "GradientCheckpointingLayer", "set_checkpointing", "wrap_checkpointing")
def checkpointing():
    calls = []

    def recompute(function, *args):
        calls.append("recompute")
        return function(*args)

    def around(before, more, function, *args):
        calls.append(more)
        return before(function, *args)

    layer = Recomputed().train()
    assert layer.gradient_checkpointing is False
    transformers_names.set_checkpointing(layer, recompute)
    transformers_names.wrap_checkpointing(
        layer, lambda before, *args: around(before, "more", *args)
    )
    assert layer(torch.zeros(1)) == 1
    assert calls == ["more", "recompute"]
    layer.eval()(torch.zeros(1))
    assert calls == ["more", "recompute"]
    decoder = tiny().model.layers[0]
    assert isinstance(decoder, transformers_names.GradientCheckpointingLayer)


@checks("transformers")
def Conv1D():
    layer = transformers_names.Conv1D(5, 3)
    assert (layer.nf, layer.nx) == (5, 3) and layer.weight.shape == (3, 5)


@checks("transformers")
def AutoHfQuantizer():
    supports = transformers_names.AutoHfQuantizer.supports_quant_method
    assert supports({"quant_method": "gptq"}) and not supports({"quant_method": "no such method"})


@checks("transformers")
def should_convert_module():
    assert transformers_names.should_convert_module("model.q_proj", ["lm_head"])
    assert not transformers_names.should_convert_module("lm_head", ["lm_head"])


@checks("transformers")
def progress():
    bar = transformers_names.progress(total=1, desc="x", unit="row", disable=False)
    bar.update()
    assert bar.n == 1
    bar.close()


@checks("transformers")
def is_console():
    assert transformers_names.is_console(PrinterCallback())
    assert transformers_names.is_console(ProgressCallback())
    assert not transformers_names.is_console(TrainerCallback())


@checks("transformers", "knows", "model_class", "from_config")
def auto_classes():
    names, config = transformers_names, tiny_llama_config()
    assert names.knows(AutoModelForCausalLM, config)
    assert names.model_class(AutoModelForCausalLM, config) is LlamaForCausalLM
    assert names.model_class(LlamaForCausalLM, config) is LlamaForCausalLM
    with torch.device("meta"):
        for factory in (AutoModelForCausalLM, LlamaForCausalLM):
            assert type(names.from_config(factory, config)) is LlamaForCausalLM


@checks("transformers")
def ignored_keys():
    assert hasattr(PreTrainedModel, "_keys_to_ignore_on_load_unexpected")
    assert isinstance(transformers_names.ignored_keys(tiny()), tuple)


@checks("transformers")
def tied_weights():
    assert transformers_names.tied_weights(tiny(tie_word_embeddings=False)) == {}
    twins = transformers_names.tied_weights(tiny(tie_word_embeddings=True))
    assert twins == {"lm_head.weight": "model.embed_tokens.weight"}


@checks("transformers")
def quantiser():
    assert transformers_names.quantiser(tiny()) is None
    source = inspect.getsource(PreTrainedModel)
    assert "hf_quantizer" in source or "hf_quantizer" in inspect.getsource(HfQuantizer)
    for attribute in ("pre_quantized", "modules_to_not_convert", "quantization_config"):
        assert attribute in inspect.getsource(HfQuantizer)
