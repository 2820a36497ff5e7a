"""Layers whose weight a model reads without calling them get no experts, or are refused by name."""

import ast
import re
from pathlib import Path

import pytest
import torch
import transformers as hf
from peft import PeftModel, get_peft_model
from torch import nn

from axolotl_alphalora.adapter import AlphaLoraConfig, AlphaLoraLayer, resolve_targets
from axolotl_alphalora.adapter.uncalled import _TRANSFORMERS, uncalled_layers
from axolotl_alphalora.planning import Targets
from helpers import deep

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
STATE = {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "expand": 2}
BLOCKS = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}
ZAMBA = {"mamba_ngroups": 1, "n_mamba_heads": 4, "mamba_d_state": 8, "mamba_headdim": 16}
NEMOTRON = {"mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1}


def gemma3n():
    shape = SMALL | HEADS | {"intermediate_size": [48] * 2}
    extra = {"vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 8, "head_dim": 8}
    extra |= {"num_kv_shared_layers": 0, "laurel_rank": 4, "altup_num_inputs": 2}
    extra |= {"activation_sparsity_pattern": [0.0] * 2, "layer_types": ["full_attention"] * 2}
    return hf.Gemma3nForCausalLM(hf.Gemma3nTextConfig(**shape, **extra))


def mobilebert():
    shape = SMALL | {"num_attention_heads": 4, "intermediate_size": 48}
    sizes = {"embedding_size": 16, "intra_bottleneck_size": 32, "true_hidden_size": 32}
    return hf.MobileBertForMaskedLM(hf.MobileBertConfig(**shape, **sizes))


class OwnAttention(nn.MultiheadAttention):
    """A class of the user's."""


class Torch(nn.Module):
    def __init__(self, attention=nn.MultiheadAttention):
        super().__init__()
        self.inner = nn.Linear(16, 16)
        self.mha = attention(16, 4, batch_first=True)
        self.block = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)

    def forward(self, x):
        h = self.inner(x)
        return self.block(self.mha(h, h, h)[0])


MODELS = {
    "mamba": (
        lambda: hf.MambaForCausalLM(hf.MambaConfig(**SMALL, state_size=8)),
        {"x_proj", "dt_proj", "out_proj"},
    ),
    "falcon-mamba": (
        lambda: hf.FalconMambaForCausalLM(hf.FalconMambaConfig(**SMALL, state_size=8)),
        {"x_proj", "dt_proj", "out_proj"},
    ),
    "mamba2": (lambda: hf.Mamba2ForCausalLM(hf.Mamba2Config(**SMALL, **STATE)), {"out_proj"}),
    "jamba": (lambda: deep.base("jamba"), {"dt_proj"}),
    "bamba": (
        lambda: hf.BambaForCausalLM(
            hf.BambaConfig(**SMALL, **HEADS, **BLOCKS, attn_layer_indices=[1])
        ),
        {"out_proj"},
    ),
    "falcon-h1": (
        lambda: hf.FalconH1ForCausalLM(
            hf.FalconH1Config(**SMALL, **HEADS, **BLOCKS, mamba_d_ssm=64, head_dim=8)
        ),
        {"out_proj"},
    ),
    "granite-hybrid": (
        lambda: hf.GraniteMoeHybridForCausalLM(
            hf.GraniteMoeHybridConfig(
                **SMALL, **HEADS, **BLOCKS, layer_types=["mamba", "attention"], num_local_experts=0
            )
        ),
        {"out_proj"},
    ),
    "nemotron-h": (
        lambda: hf.NemotronHForCausalLM(
            hf.NemotronHConfig(
                **(SMALL | HEADS | NEMOTRON), layers_block_type=["mamba", "attention"], head_dim=8
            )
        ),
        {"out_proj"},
    ),
    "zamba2": (
        lambda: hf.Zamba2ForCausalLM(
            hf.Zamba2Config(**SMALL, **HEADS, **ZAMBA, layers_block_type=["mamba", "hybrid"])
        ),
        {"out_proj"},
    ),
    "gemma3n": (gemma3n, {"correction_coefs"}),
    "mobilebert": (mobilebert, {"dense"}),
    "torch": (Torch, {"out_proj", "linear1", "linear2"}),
    "torch, own class": (lambda: Torch(OwnAttention), {"out_proj", "linear1", "linear2"}),
}
every_model = pytest.mark.parametrize("name", MODELS)


def built(name):
    torch.manual_seed(0)
    return MODELS[name][0]()


def config(**changes):
    settings = {"r": 2, "num_experts": 3, "target_modules": "all-linear", "init_weights": False}
    return AlphaLoraConfig(**(settings | changes))


def layers(model):
    return {m.module_name: m for m in model.modules() if isinstance(m, AlphaLoraLayer)}


def run(model):
    if isinstance(model.get_base_model(), Torch):
        return model(torch.ones(2, 5, 16))
    return model(input_ids=deep.IDS).logits


@every_model
def test_all_linear_leaves_them_out_in_plan_and_adapter_and_the_rest_runs(name):
    model = built(name)
    names = resolve_targets(config(), model)
    assert list(Targets(linear=True).resolve(model)) == names
    left_out = {known.rpartition(".")[2] for known in uncalled_layers(model)}
    assert left_out >= MODELS[name][1]
    assert not uncalled_layers(model).keys() & set(names)
    adapted = get_peft_model(model, config())
    with torch.no_grad():
        bare = run(adapted.eval())
    ran = set()
    for layer in layers(adapted).values():
        layer.register_forward_hook(lambda layer, *_: ran.add(layer.module_name))
    for training in (True, False):
        ran.clear()
        with torch.no_grad():
            found = run(adapted.train(training))
        assert ran == set(names), "training" if training else "evaluation"
    torch.testing.assert_close(found, bare, rtol=0, atol=1e-5)  # torch's fast path takes no hooks


@every_model
def test_named_they_are_refused_with_the_reader_and_the_remedy(name):
    model = built(name)
    for module, owner in uncalled_layers(model).items():
        message = rf"Target {re.escape(module)} .*not run: {owner} reads.*exclude_modules"
        counts = {module: 2}
        for changes in (
            {"target_modules": [module]},
            {"target_modules": f".*{re.escape(module)}"},
            {"target_modules": None, "num_experts": counts},
        ):
            with pytest.raises(ValueError, match=message):
                get_peft_model(model, config(**changes))
        with pytest.raises(ValueError, match=message):
            Targets(modules=[module]).resolve(model)
    assert not layers(model)


@pytest.mark.parametrize("name", ["mamba", "gemma3n", "torch"])
def test_adapters_that_were_saved_with_such_layers_open(name, tmp_path, monkeypatch):
    monkeypatch.setattr("axolotl_alphalora.adapter.targets.uncalled_layers", lambda _: {})
    old = get_peft_model(built(name), config())
    old.save_pretrained(tmp_path)
    monkeypatch.undo()
    opened = PeftModel.from_pretrained(built(name), tmp_path)
    assert list(layers(opened)) == list(layers(old))
    assert uncalled_layers(built(name)).keys() <= layers(opened).keys()
    with torch.no_grad():
        torch.testing.assert_close(run(opened.eval()), run(old.eval()), rtol=0, atol=1e-6)
    opened.add_adapter("new", config())
    assert not uncalled_layers(built(name)).keys() & opened.peft_config["new"].num_experts.keys()


def test_a_class_of_the_same_name_elsewhere_is_another_one():
    class MambaMixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.dt_proj = nn.Linear(4, 4)

    assert uncalled_layers(nn.Sequential(MambaMixer())) == {}


CALLED_AS_WELL = {
    ("BloomAttention", "dense"),  # with pretraining_tp alone
    ("BloomMLP", "dense_4h_to_h"),
    ("DisentangledSelfAttention", "in_proj"),  # with query states from outside alone
    ("Gemma3nTextAltUp", "prediction_coefs"),  # clamped in place, then called
    ("Gemma4AssistantForCausalLM", "lm_head"),
    ("Gemma4UnifiedAssistantForCausalLM", "lm_head"),
}
ABOUT = {"dtype", "device", "shape", "size", "ndim"}


def of_self(node):
    """The `x` of an expression `self.x`, else None."""
    on_self = isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "self"
    return node.attr if on_self else None


def calls(node, *functions):
    return (
        isinstance(node, ast.Call)
        and (getattr(node.func, "attr", None) or getattr(node.func, "id", None)) in functions
    )


def weights_read(owner):
    """The linear layers whose weight a class reads outside its set-up."""
    linear = {
        of_self(target)
        for node in ast.walk(owner)
        if isinstance(node, ast.Assign) and calls(node.value, "Linear", "Conv1D")
        for target in node.targets
    }
    methods = [node for node in owner.body if isinstance(node, ast.FunctionDef)]
    for method in (method for method in methods if "init" not in method.name and linear):
        about = set()  # `self.x.weight.dtype` and isinstance() ask about it
        for node in ast.walk(method):
            if isinstance(node, ast.Attribute) and node.attr in ABOUT:
                about.add(node.value)
            elif calls(node, "isinstance"):
                about.update(node.args)
            elif (
                isinstance(node, ast.Attribute)
                and node.attr == "weight"
                and isinstance(node.ctx, ast.Load)
                and of_self(node.value) in linear - {None}
                and node not in about
            ):
                yield of_self(node.value)


def test_the_table_lacks_no_such_layer_of_the_installed_transformers():
    read = re.compile(r"self\.(\w+)\.weight\b(?!\.(?:dtype|device|shape))")
    found = set()
    for file in Path(hf.__file__).parent.glob("models/*/modeling_*.py"):
        text = file.read_text()
        names = set(read.findall(text))
        if not any(re.search(rf"self\.{n} = (?:nn\.)?(?:Linear|Conv1D)\(", text) for n in names):
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                found |= {(node.name, layer) for layer in weights_read(node)}
    known = {(owner, layer) for owner, names in _TRANSFORMERS.items() for layer in names}
    assert found - CALLED_AS_WELL - known == set()
    assert len(found & known) > 25
