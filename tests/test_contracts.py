"""What we rely on of the hosts: a release that moves or changes a name fails here, by that name.

Each name of the boundary files (`hosts/`, `plugin/host.py`) has one check; one without fails.
"""

import ast
import inspect
import re
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
)
from transformers.quantizers.base import HfQuantizer

from axolotl_alphalora.hosts import constants
from axolotl_alphalora.hosts import peft as peft_names
from axolotl_alphalora.hosts import torch as torch_names
from axolotl_alphalora.hosts import transformers as transformers_names
from axolotl_alphalora.plugin import host
from helpers.models import tiny_llama_config

PACKAGE = Path(__file__).parents[1] / "axolotl_alphalora"
BOUNDARIES = {
    "constants": PACKAGE / "hosts" / "constants.py",
    "peft": PACKAGE / "hosts" / "peft.py",
    "torch": PACKAGE / "hosts" / "torch.py",
    "transformers": PACKAGE / "hosts" / "transformers.py",
    "axolotl": PACKAGE / "plugin" / "host.py",
}
CHECKS: dict[tuple[str, str], Callable[[], None]] = {}


def checks(file: str, *names: str):
    """A check of names of a boundary file."""

    def take(check):
        for name in names or (check.__name__,):
            assert (file, name) not in CHECKS
            CHECKS[file, name] = check
        return check

    return take


def names_of(file: str) -> set[str]:
    """What a boundary file imports from its host or defines, by its source."""
    found = set()
    for node in ast.parse(BOUNDARIES[file].read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{file}."):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            found |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return {name for name in found if not name.startswith("_")}


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


def takes(function: Callable, *names: str) -> None:
    """A function that can be called with these, by position in this order."""
    found = list(inspect.signature(function).parameters)
    assert [name for name in found if name in names] == list(names), f"{function}: {found}"


def tiny(**changes) -> LlamaForCausalLM:
    with torch.device("meta"):
        return LlamaForCausalLM(tiny_llama_config(**changes))


# --- constants


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
def NF4():
    """That Axolotl's are the same is in tests/plugin/test_quantization_config.py."""
    found = BitsAndBytesConfig(**constants.NF4)
    assert constants.NF4.items() <= found.to_dict().items()


@checks("constants")
def OPTIMIZER():
    from axolotl.utils.schemas.config import AxolotlInputConfig

    default = AxolotlInputConfig.model_fields["optimizer"].default
    assert getattr(default, "value", default) == constants.OPTIMIZER


@checks("constants")
def TRL_CONSOLE():
    callbacks = pytest.importorskip("trl.trainer.callbacks")
    assert issubclass(getattr(callbacks, constants.TRL_CONSOLE), TrainerCallback)


# --- PEFT


@checks(
    "peft",
    "PEFT_TYPE_TO_CONFIG_MAPPING",
    "PEFT_TYPE_TO_PREFIX_MAPPING",
    "PEFT_TYPE_TO_TUNER_MAPPING",
)
def tables_of_methods():
    from peft import LoraConfig, LoraModel, PeftType

    for table, of_lora in (
        (peft_names.PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig),
        (peft_names.PEFT_TYPE_TO_PREFIX_MAPPING, "lora_"),
        (peft_names.PEFT_TYPE_TO_TUNER_MAPPING, LoraModel),
    ):
        assert table[PeftType.LORA] == of_lora


@checks("peft")
def BaseTuner():
    """What we override is there, and is called with what ours takes."""
    from peft import PeftModel

    from axolotl_alphalora.adapter import AlphaLoraModel

    ours = {
        name: getattr(AlphaLoraModel, name)
        for name, value in vars(AlphaLoraModel).items()
        if isinstance(value, staticmethod | classmethod) or inspect.isfunction(value)
    }
    del ours["__init__"], ours["_enable_peft_forward_hooks"]
    assert "base_model._enable_peft_forward_hooks(" in inspect.getsource(PeftModel)
    assert len(ours) == 11
    for name, method in ours.items():
        theirs = inspect.signature(getattr(peft_names.BaseTuner, name)).parameters
        kinds = {p.kind for p in inspect.signature(method).parameters.values()}
        if inspect.Parameter.VAR_POSITIONAL not in kinds:
            named = [n for n, p in theirs.items() if p.kind is not inspect.Parameter.VAR_KEYWORD]
            found = list(inspect.signature(method).parameters)
            assert [n for n in found if n in named] == [n for n in named if n in found], name
            assert {n for n in named if theirs[n].default is inspect.Parameter.empty} <= {*found}
    takes(peft_names.BaseTuner._remove_adapter_name_from_key, "key", "adapter_name")


@checks("peft")
def BaseTunerLayer():
    layer = peft_names.BaseTunerLayer
    takes(layer._move_adapter_to_device_of_base_layer, "self", "adapter_name")
    takes(layer._cast_input_dtype, "self", "x", "dtype")
    takes(layer.set_adapter, "self", "adapter_names", "inference_mode")
    takes(layer.get_base_layer, "self")
    assert isinstance(layer.active_adapters, property)
    assert isinstance(layer.disable_adapters, property)
    assert {"adapter_layer_names", "other_param_names"} <= layer.__annotations__.keys()
    source = inspect.getsource(layer)
    for attribute in ("_disable_adapters", "_active_adapter", "merged_adapters"):
        assert attribute in source


@checks("peft")
def check_target_module_exists():
    from peft import LoraConfig

    def found(name, **settings):
        return peft_names.check_target_module_exists(LoraConfig(**settings), name)

    assert found("model.q_proj", target_modules=["q_proj"])
    assert not found("model.v_proj", target_modules=["q_proj"])
    assert not found("model.q_proj", target_modules=["q_proj"], exclude_modules=["q_proj"])
    layers = {"target_modules": ["q_proj"], "layers_to_transform": [1]}
    assert found("model.layers.1.q_proj", **layers)
    assert not found("model.layers.0.q_proj", **layers)


@checks("peft")
def in_out_features():
    assert peft_names.in_out_features(nn.Linear(3, 5)) == (3, 5)
    assert peft_names.in_out_features(transformers_names.Conv1D(5, 3)) == (3, 5)


@checks("peft", "include_all_linear_layers", "INCLUDE_LINEAR_LAYERS_SHORTHAND")
def all_linear():
    from peft import LoraConfig

    assert peft_names.INCLUDE_LINEAR_LAYERS_SHORTHAND == "all-linear"
    config, model = LoraConfig(target_modules="all-linear"), tiny()
    peft_names.include_all_linear_layers(config, model)
    assert "lm_head" not in config.target_modules
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    assert all(
        n in config.target_modules or n.split(".")[-1] in config.target_modules for n in layers
    )


@checks("peft")
def TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING():
    table = peft_names.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    assert list(table["llama"]) == ["q_proj", "v_proj"]


@checks("peft")
def IncrementalPCA():
    """What we set, and the way past the check that the last rows are as many as the components."""
    pca = peft_names.IncrementalPCA
    takes(pca.__init__, "n_components", "lowrank", "lowrank_q", "lowrank_seed")
    takes(pca.partial_fit, "self", "X", "check_input")
    found = pca(n_components=2, lowrank=True, lowrank_q=4, lowrank_seed=0)
    rows = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    found.lowrank = False  # read at each update
    found.partial_fit(rows[:49].clone(), check_input=False)
    found.partial_fit(rows[49:].clone(), check_input=False)
    squares = torch.linalg.svdvals(rows - rows.mean(0)).square()
    wanted = (squares / squares.sum())[:2]
    assert torch.allclose(found.explained_variance_ratio_.float(), wanted, rtol=0.02)


@checks("peft")
def ModulesToSaveWrapper():
    base = nn.Linear(1, 1)
    wrapper = peft_names.ModulesToSaveWrapper(base, "default")
    assert wrapper.original_module is base
    assert isinstance(wrapper.modules_to_save["default"], nn.Linear)


@checks("peft")
def get_peft_model_state_dict():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny(), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    )
    found = peft_names.get_peft_model_state_dict(model)
    assert "base_model.model.lm_head.weight" in found
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in found


@checks("peft")
def get_quantization_kwargs():
    assert isinstance(peft_names.get_quantization_kwargs(nn.Linear(1, 1)), dict)


@checks("peft")
def quantization_extra_repr():
    takes(peft_names.quantization_extra_repr, "module")


@checks("peft")
def resolve_quantization_backend():
    assert peft_names.resolve_quantization_backend(nn.Linear(1, 1)) is None
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear8bitLt(8, 8, has_fp16_weights=False)
    found = peft_names.resolve_quantization_backend(layer, get_apply_tensor_subclass=None)
    assert found.layer_type == "linear"


@checks("peft")
def SEQ_CLS_HEAD_NAMES():
    assert {*peft_names.SEQ_CLS_HEAD_NAMES} >= {*constants.CLASSIFIER_HEADS}


@checks("peft")
def dequantize_module_weight():
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4")
    plain = nn.Linear(64, 64, bias=False)
    layer.load_state_dict(plain.state_dict())
    found = peft_names.dequantize_module_weight(layer.to("cpu"))
    assert (found - plain.weight).abs().max() < 0.05


@checks("peft")
def get_pattern_key():
    assert peft_names.get_pattern_key(["q_proj", "v_.*"], "model.v_proj") == "v_.*"
    assert peft_names.get_pattern_key(["q_proj"], "model.v_proj") == "model.v_proj"


@checks("peft")
def lora_variants():
    assert {"use_dora", "alora_invocation_tokens"} <= {*peft_names.lora_variants()}
    assert not {"r", "lora_alpha", "lora_dropout"} & {*peft_names.lora_variants()}


# --- transformers


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
def ModelOutput():
    found = transformers_names.ModelOutput(loss=1)
    assert found.get("loss") == 1
    found["loss"] = 2
    assert found["loss"] == 2


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


def test_trainers_have_what_the_callback_replaces_and_reads():
    takes(Trainer.log, "self", "logs")
    takes(Trainer.training_step, "self", "model", "inputs")
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


def test_classes_that_are_known_by_their_paths_are_there():
    import transformers

    from axolotl_alphalora.adapter.layer import FRESH_OUTPUT
    from axolotl_alphalora.spectral import definition, live

    for path in {*FRESH_OUTPUT, *live._READERS}:
        module, _, name = path.rpartition(".")
        if find_spec(module.partition(".")[0]) is not None:
            assert isinstance(getattr(import_module(module), name), type), path
    for name in (*definition._WHOLE, *definition._OWN.values()):
        assert isinstance(getattr(transformers, name), type), name


# --- torch


@checks("torch", "next_node_number", "running_node_number")
def numbers_of_nodes():
    assert torch_names.running_node_number() is None
    seen = []

    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(torch_names.running_node_number())
            return grad

    before = torch_names.next_node_number()
    y = Seen.apply(torch.ones((), requires_grad=True))
    assert torch_names.next_node_number() == before + 1
    y.backward()
    assert seen == [before]


@checks("torch")
def is_watched():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    assert not torch_names.is_watched()
    with Watch():
        assert torch_names.is_watched()


@checks("torch")
def has_hooks():
    layer = nn.Linear(1, 1)
    assert not torch_names.has_hooks(layer)
    for register in (
        layer.register_forward_hook,
        layer.register_full_backward_hook,
        lambda hook: nn.modules.module.register_module_forward_hook(hook),
    ):
        handle = register(lambda *args: None)
        assert torch_names.has_hooks(layer)
        handle.remove()
        assert not torch_names.has_hooks(layer)
    layer.forward = layer.forward
    assert torch_names.has_hooks(layer)


@checks("torch")
def softmax_backward():
    logits, grad = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    found = torch_names.softmax_backward(grad, logits.softmax(-1).detach())
    logits.softmax(-1).backward(grad)
    torch.testing.assert_close(found, logits.grad)


@checks("torch")
def add_each():
    left = [torch.ones(2), torch.zeros(1)]
    torch_names.add_each(left, [torch.ones(2), torch.ones(1)])
    assert [part.tolist() for part in left] == [[2, 2], [1]]


@checks("torch")
def is_convolution():
    assert torch_names.is_convolution(nn.Conv1d(1, 1, 1))
    assert not torch_names.is_convolution(nn.Linear(1, 1))


@checks("torch", "whole_shape", "is_partitioned")
def partitioned():
    weight = nn.Parameter(torch.zeros(0))
    assert torch_names.whole_shape(weight) == (0,) and not torch_names.is_partitioned(weight)
    weight.ds_shape = torch.Size([2, 3])
    assert torch_names.whole_shape(weight) == (2, 3) and torch_names.is_partitioned(weight)
    zero = pytest.importorskip("deepspeed.runtime.zero.partition_parameters")
    assert "param.ds_shape = param.shape" in inspect.getsource(zero)


# --- Axolotl


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


@checks("axolotl", "OLDEST", "NEWEST", "check_host")
def releases():
    """The installed one is among those that we know."""
    from importlib.metadata import version

    from packaging.version import Version

    assert Version(host.OLDEST) <= Version(version("axolotl"))
    assert Version(version("axolotl")).release[:2] <= Version(host.NEWEST).release
    host.check_host()


@checks("axolotl")
def OUTPUT_DIR():
    from axolotl.utils.schemas.config import AxolotlInputConfig

    assert AxolotlInputConfig.model_fields["output_dir"].default == host.OUTPUT_DIR


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


# --- all of them


@pytest.mark.parametrize("file", BOUNDARIES)
def test_every_name_of_a_boundary_has_a_check(file):
    names = names_of(file) | (set(host._HOMES) if file == "axolotl" else set())
    assert names
    assert {name for of, name in CHECKS if of == file} == names


@pytest.mark.parametrize(("file", "name"), sorted(CHECKS), ids=str)
def test_the_host_has_it_as_we_rely_on_it(file, name):
    if file == "axolotl" or name == "OPTIMIZER":
        pytest.importorskip("axolotl")
    CHECKS[file, name]()
