"""What is saved says by itself which layers it adapts, and opens by every way that there is."""

import copy
import json

import pytest
import torch
import transformers as hf
from peft import (
    AutoPeftModelForCausalLM,
    PeftConfig,
    PeftModel,
    get_peft_model,
    inject_adapter_in_model,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import _find_minimal_target_modules

from axolotl_alphalora.adapter import AlphaLoraConfig, AlphaLoraLayer, resolve_targets
from helpers import deep
from helpers.hosts import TRANSFORMERS_TAKES_PEFT, needs_add_adapter_of_transformers

every_family = pytest.mark.parametrize("family", deep.BASES)


def config(**changes):
    settings = {"r": 2, "num_experts": 2, "target_modules": "all-linear", "init_weights": False}
    return AlphaLoraConfig(**(settings | {"task_type": "CAUSAL_LM"} | changes))


def layers(model):
    return {m.module_name: m for m in model.modules() if isinstance(m, AlphaLoraLayer)}


def settings(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def copied(adapter, folder, **changes):
    """A copy of a saved adapter with changes of its settings."""
    weights = "adapter_model.safetensors"
    (folder / weights).symlink_to(adapter / weights)
    (folder / "adapter_config.json").write_text(json.dumps(settings(adapter) | changes))
    return folder


def assert_same_logits(model, expected):
    """Up to how memory is aligned, by which kernels may choose their order of summation."""
    torch.testing.assert_close(deep.logits(model), expected, rtol=0, atol=1e-6)


@pytest.fixture(scope="module", params=deep.BASES)
def deep_adapter(request, tmp_path_factory):
    """A family, the adapted model's logits, and the directories of its base and its adapter."""
    folder = tmp_path_factory.mktemp(request.param)
    base = deep.base(request.param)
    base.save_pretrained(folder / "base")
    base.name_or_path = str(folder / "base")
    model = get_peft_model(base, config())
    assert len(layers(model)) > 25
    model.save_pretrained(folder / "adapter")
    expected = deep.logits(model)
    assert (expected - deep.logits(deep.base(request.param))).abs().max() > 1e-3
    return request.param, expected, folder


def shortened(names, model):
    """Exact names as PEFT shortened them in what was saved before; it looks at modules only."""
    suffixes = tuple(f".{name}" for name in names)
    others = [
        name
        for name, _ in model.named_modules()
        if name not in names and not name.endswith(suffixes)
    ]
    short = _find_minimal_target_modules(names, others)
    assert len(short) < len(names)
    return sorted(short)


def second(base, adapter):
    model = get_peft_model(base, config(target_modules=["o_proj"]))
    model.load_adapter(adapter, "again")
    model.set_adapter("again")
    return model


def through_transformers(base, adapter):
    base.load_adapter(str(adapter))
    return base


def as_state_dict(base, adapter):
    model = get_peft_model(base, PeftConfig.from_pretrained(adapter))
    set_peft_model_state_dict(model, load_peft_weights(adapter, device="cpu"))
    return model


def by_its_keys(base, adapter):
    weights = load_peft_weights(adapter, device="cpu")
    weights = {key.removeprefix("base_model.model."): value for key, value in weights.items()}
    model = inject_adapter_in_model(PeftConfig.from_pretrained(adapter), base, state_dict=weights)
    set_peft_model_state_dict(model, weights)
    return model


WAYS = {
    "PeftModel": PeftModel.from_pretrained,
    "to train": lambda base, path: PeftModel.from_pretrained(base, path, is_trainable=True),
    "low_cpu_mem_usage": lambda base, path: PeftModel.from_pretrained(
        base, path, low_cpu_mem_usage=True
    ),
    "AutoPeftModel": lambda _, path: AutoPeftModelForCausalLM.from_pretrained(path),
    "AutoModel": lambda _, path: hf.AutoModelForCausalLM.from_pretrained(path),
    "second adapter": second,
    "load_adapter": through_transformers,
    "state dict": as_state_dict,
    "keys": by_its_keys,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("names", ["exact names", "shortened names"])
def test_a_deep_adapter_opens_by_every_way_whatever_its_target_modules_say(
    deep_adapter, tmp_path, names, way
):
    family, expected, folder = deep_adapter
    changes = {}
    if names == "shortened names":
        counted = set(settings(folder / "adapter")["num_experts"])
        changes = {"target_modules": shortened(counted, deep.base(family))}
    adapter = copied(folder / "adapter", tmp_path, **changes)
    assert_same_logits(WAYS[way](deep.base(family), adapter), expected)


@every_family
@pytest.mark.parametrize(
    "where",
    [
        "get_peft_model",
        "add_adapter",
        pytest.param("add_adapter of transformers", marks=needs_add_adapter_of_transformers),
    ],
)
def test_exact_names_are_saved_of_however_many_layers(family, where, tmp_path):
    base = deep.base(family)
    names = resolve_targets(config(), base)
    if where == "add_adapter of transformers":
        base.add_adapter(config(), adapter_name="other")
        base.peft_config["other"].save_pretrained(tmp_path)
    elif where == "add_adapter":
        model = get_peft_model(base, config(target_modules=["o_proj"]))
        model.add_adapter("other", config())
        model.save_pretrained(tmp_path, selected_adapters=["other"])
        tmp_path = tmp_path / "other"
    else:
        get_peft_model(base, config()).save_pretrained(tmp_path)
    assert sorted(settings(tmp_path)["target_modules"]) == sorted(names)
    assert list(settings(tmp_path)["num_experts"]) == sorted(names)


def test_an_opened_adapter_adapts_what_its_counts_say(deep_adapter):
    family, _, folder = deep_adapter
    read = AlphaLoraConfig.from_pretrained(folder / "adapter")
    base = deep.base(family)
    assert resolve_targets(read, base) == resolve_targets(config(), base)
    read.target_modules = {"q_proj"}
    assert resolve_targets(read, base) == resolve_targets(config(), base)


def test_modules_of_the_meta_device_are_opened_by_name(deep_adapter, tmp_path):
    family, _, folder = deep_adapter
    kind, shape = deep.BASES[family]
    with torch.device("meta"):
        base = kind(shape())
    adapter = copied(folder / "adapter", tmp_path, target_modules=["down_proj"])
    opened = inject_adapter_in_model(AlphaLoraConfig.from_pretrained(adapter), base)
    assert list(layers(opened)) == resolve_targets(config(), deep.base(family))


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], r".*layers\.\d+\..*_proj"])
def test_one_config_gives_every_model_its_own_layers_and_stays_as_it_was(targets):
    plan = {"modules": [{"name": "x"}]}
    one = config(target_modules=targets, exclude_modules=["k_proj"], plan=plan)
    before = copy.deepcopy(one)
    for blocks in (6, 3, 8):
        base = deep.base("llama", num_hidden_layers=blocks)
        wanted = resolve_targets(one, base)
        model = get_peft_model(base, one)
        assert list(layers(model)) == wanted and {n.split(".")[2] for n in wanted} == set(
            map(str, range(blocks))
        )
        assert list(model.peft_config["default"].num_experts) == wanted
        if TRANSFORMERS_TAKES_PEFT:
            other = deep.base("llama", num_hidden_layers=blocks)
            other.add_adapter(one, adapter_name="again")
            assert list(layers(other)) == wanted
        model.add_adapter("again", one)
        assert list(model.peft_config["again"].num_experts) == wanted
    one.base_model_name_or_path = before.base_model_name_or_path  # PEFT's own doing
    assert one == before
    assert plan == {"modules": [{"name": "x"}]}


def test_what_the_caller_does_to_a_config_later_is_not_saved(tmp_path):
    ranks, plan = {"model.layers.0.self_attn.q_proj": 3}, {"strategy": "uniform"}
    one = config(rank_pattern=ranks, plan=plan, modules_to_save=["embed_tokens"])
    configs = {"default": one}
    model = get_peft_model(deep.base("llama"), one)
    one.plan["strategy"] = plan["strategy"] = "depth"
    one.rank_pattern.clear()
    one.modules_to_save.append("norm")
    model.save_pretrained(tmp_path)
    found = settings(tmp_path)
    assert found["rank_pattern"] == ranks and found["plan"] == {"strategy": "uniform"}
    assert found["modules_to_save"] == ["embed_tokens"]
    tuner = type(model.base_model)(deep.base("llama"), configs, "default")
    assert configs == {"default": one} and configs["default"] is one
    assert tuner.peft_config["default"] is not one


@pytest.mark.parametrize("deep_adapter", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_hidden_layers": 5}, r"trained on 6 blocks in model\.layers, and the model has 5"),
        ({"num_hidden_layers": 7}, r"trained on 6 blocks in model\.layers, and the model has 7"),
        (
            {"hidden_size": 64},
            r"model\.layers\.0\.self_attn\.q_proj has 32 inputs and 32 outputs, and in the model "
            "64 and 64",
        ),
        (
            {"intermediate_size": 80},
            r"model\.layers\.0\.mlp\.gate_proj has 32 inputs and 48 outputs, and in the model 32 "
            "and 80",
        ),
    ],
    ids=["shallower", "deeper", "wider", "wider inside"],
)
@pytest.mark.parametrize("way", ["PeftModel", "low_cpu_mem_usage", "second adapter"])
def test_another_base_is_called_that_with_both_sizes_and_the_right_ones_name(
    deep_adapter, sizes, message, way
):
    _, _, folder = deep_adapter
    base = deep.base("llama", **sizes)
    with pytest.raises(ValueError, match=message) as caught:
        WAYS[way](base, folder / "adapter")
    assert "this LlamaForCausalLM is another base model" in str(caught.value)
    assert f"Open it on {folder / 'base'}." in str(caught.value)


def test_adapters_without_the_number_of_blocks_open_on_no_shallower_base(deep_adapter, tmp_path):
    family, expected, folder = deep_adapter
    assert settings(folder / "adapter")["base_blocks"] == {"model.layers": 6}
    adapter = copied(folder / "adapter", tmp_path, base_blocks=None)
    assert_same_logits(PeftModel.from_pretrained(deep.base(family), adapter), expected)
    with pytest.raises(ValueError, match=r"names model\.layers\.5\.\S+, which the model does not"):
        PeftModel.from_pretrained(deep.base(family, num_hidden_layers=5), adapter)
