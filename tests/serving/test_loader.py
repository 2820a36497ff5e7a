"""The loader in vLLM's order of things, around stand-ins for what it takes from vLLM 0.32."""

import importlib
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from helpers import vllm_layers
from helpers.vllm_layers import Model, added, modules, save_adapter

NAMES = (
    "vllm",
    "vllm.logger",
    "vllm.distributed",
    "vllm.model_executor",
    "vllm.model_executor.layers",
    "vllm.model_executor.layers.linear",
    "vllm.model_executor.model_loader",
    "vllm.model_executor.model_loader.default_loader",
)
PLAN = {name: 3 for name in modules()}


class DefaultModelLoader:
    """Makes a model, then reads its weights."""

    def __init__(self, load_config):
        self.load_config = load_config
        self.read = []

    def load_model(self, vllm_config, model_config, prefix=""):
        assert self.load_config.load_format == "auto"
        model = vllm_config.make(vllm_layers.weights(), **vllm_config.world)
        self.load_weights(model, model_config)
        return model.eval()

    def load_weights(self, model, model_config):
        self.read += self.get_all_weights(model_config, model)

    def get_all_weights(self, model_config, model):
        return ["weights"]


@pytest.fixture
def registered(monkeypatch):
    """The load formats of a stand-in for vLLM, in which our entry point was called."""
    made = {name: ModuleType(name) for name in NAMES}
    formats = {}

    def register_model_loader(name):
        return lambda loader: formats.setdefault(name, loader)

    made["vllm.logger"].init_logger = lambda name: SimpleNamespace(info=lambda *args: None)
    made["vllm.distributed"].tensor_model_parallel_all_reduce = lambda tensor: tensor
    made["vllm.model_executor.model_loader"].register_model_loader = register_model_loader
    made["vllm.model_executor.model_loader.default_loader"].DefaultModelLoader = DefaultModelLoader
    for kind in ("LinearBase", "ColumnParallelLinear", "MergedColumnParallelLinear"):
        setattr(made["vllm.model_executor.layers.linear"], kind, getattr(vllm_layers, kind))
    for kind in ("QKVParallelLinear", "RowParallelLinear", "ReplicatedLinear"):
        setattr(made["vllm.model_executor.layers.linear"], kind, getattr(vllm_layers, kind))
    made["vllm.model_executor.layers"].linear = made["vllm.model_executor.layers.linear"]
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in [n for n in sys.modules if n.startswith("axolotl_alphalora.vllm")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.import_module("axolotl_alphalora.vllm").register()
    return formats


def config(folder, base="base", *, world=None, parallel=None, **changes):
    one = dict.fromkeys(
        ("pipeline_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size"),
        1,
    )
    options = {
        "additional_config": {"alphalora": str(folder)},
        "lora_config": None,
        "speculative_config": None,
        "weight_transfer_config": None,
        "parallel_config": SimpleNamespace(**one | (parallel or {})),
        "model_config": SimpleNamespace(
            model=str(base), revision=None, dtype=torch.float32, use_mla=False
        ),
        "device_config": SimpleNamespace(device="cpu"),
        "world": world or {},
        "make": Model,
    }
    return SimpleNamespace(**options | changes)


def load(registered, asked):
    load_config = SimpleNamespace(load_format="alphalora")
    loader = registered["alphalora"](load_config)
    model = loader.load_model(vllm_config=asked, model_config=asked.model_config)
    assert load_config.load_format == "alphalora", "the config is vLLM's"
    return model, loader


def test_a_model_is_loaded_with_its_experts(registered, tmp_path):
    tensors = save_adapter(tmp_path, PLAN)
    model, loader = load(registered, asked := config(tmp_path))
    assert loader.read == ["weights"]
    name, x = "model.layers.0.mlp.down_proj", torch.randn(4, 20)
    base = x @ vllm_layers.weights()[name].T
    want = base + added(x, tensors[name], 3, 4, vllm_layers.Mixture())
    torch.testing.assert_close(model.get_submodule(name)(x)[0], want)
    assert model.get_submodule(name).requires_unquantized_input
    assert len(asked.additional_config["alphalora_digest"]) == 16


def test_the_cached_graph_is_that_of_the_adapters_shape(registered, tmp_path):
    digests = []
    for count in (2, 3):
        save_adapter(tmp_path, dict.fromkeys(PLAN, count))
        load(registered, asked := config(tmp_path))
        digests.append(asked.additional_config["alphalora_digest"])
    assert digests[0] != digests[1]


OPTIONS = {
    "no adapter": ({"additional_config": {}}, '--additional-config \'{"alphalora": '),
    "a config of another kind": ({"additional_config": object()}, "needs --additional-config"),
    "a misspelt key": (
        {"additional_config": {"alphalora": "x", "alphalora_base": True}},
        "'alphalora_base' is none of",
    ),
    "LoRAs beside it": ({"lora_config": object()}, "--enable-lora"),
    "speculation": ({"speculative_config": object()}, "--speculative-config"),
    "a pipeline": ({"parallel": {"pipeline_parallel_size": 2}}, "--pipeline-parallel-size"),
    "context parallelism": (
        {"parallel": {"decode_context_parallel_size": 2}},
        "--decode-context-parallel-size",
    ),
    "context parallelism of prompts": (
        {"parallel": {"prefill_context_parallel_size": 2}},
        "--prefill-context-parallel-size",
    ),
    "weights from a trainer": ({"weight_transfer_config": object()}, "--weight-transfer-config"),
    "a base of another name": ({"base": "other"}, "trained on base, and --model is other"),
}


@pytest.mark.refused("Serving", "`--enable-lora`, speculation, pipelines beside a routed adapter")
@pytest.mark.parametrize("why", OPTIONS)
def test_options_are_refused_by_name_before_anything_is_loaded(registered, tmp_path, why):
    changes, message = OPTIONS[why]
    save_adapter(tmp_path, PLAN)
    with pytest.raises(ValueError) as caught:
        load(registered, config(tmp_path, **changes))
    assert message in str(caught.value)


def test_what_the_model_shows_is_refused_before_its_weights_are_read(registered, tmp_path):
    save_adapter(tmp_path, {name: 2 for name in modules(2)})
    loader = registered["alphalora"](SimpleNamespace(load_format="alphalora"))
    asked = config(tmp_path)
    with pytest.raises(ValueError, match="7 of the adapter's modules"):
        loader.load_model(vllm_config=asked, model_config=asked.model_config)
    assert loader.read == []


class Latent(Model):
    """With multi-head latent attention."""

    def __init__(self, base, **world):
        super().__init__(base, **world)
        self.model.layers[0].self_attn.kv_b_proj = vllm_layers.ColumnParallelLinear(
            torch.ones(16, 16)
        )


def test_what_latent_attention_reads_by_itself_is_refused(registered, tmp_path, monkeypatch):
    monkeypatch.setitem(vllm_layers.SIZES, "self_attn.kv_b_proj", (16, 16))
    save_adapter(tmp_path, {"model.layers.0.self_attn.kv_b_proj": 2})
    asked = config(tmp_path, make=Latent)
    load(registered, asked)
    asked.model_config.use_mla = True
    with pytest.raises(ValueError, match="kv_b_proj: vLLM reads its weight without calling it"):
        load(registered, asked)


def test_another_name_of_the_base_can_be_confirmed(registered, tmp_path):
    save_adapter(tmp_path / "adapter", PLAN)
    extra = {"alphalora": str(tmp_path / "adapter"), "alphalora_any_base": True}
    load(registered, config(tmp_path, "other", additional_config=extra))


def test_one_directory_under_two_names_is_one_base(registered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    save_adapter(tmp_path / "adapter", PLAN)
    load(registered, config(tmp_path / "adapter", tmp_path / "base"))


SNAPSHOT = "hub/models--org--base/snapshots/0123"


@pytest.mark.parametrize(
    ("own", "folder", "same"),
    [
        ("org/base", SNAPSHOT, True),
        ("org/base", f"{SNAPSHOT}/", True),
        ("base", "hub/models--base/snapshots/0123", True),
        ("org/bas", SNAPSHOT, False),
        ("base", SNAPSHOT, False),
        ("org/base", "hub/datasets--org--base/snapshots/0123", False),
    ],
)
def test_a_base_of_the_hub_may_be_named_by_its_place_in_the_cache(
    registered, tmp_path, own, folder, same
):
    """So vLLM does with HF_HUB_OFFLINE=1."""
    save_adapter(tmp_path, PLAN, base_model_name_or_path=own)
    asked = config(tmp_path, tmp_path / folder)
    if same:
        load(registered, asked)
    else:
        with pytest.raises(ValueError, match=f"was trained on {own}, and --model is "):
            load(registered, asked)


@pytest.mark.parametrize(
    ("model", "revision", "same"),
    [
        ("org/base", "v2", True),
        ("org/base", None, False),
        ("org/base", "main", False),
        (SNAPSHOT, None, True),  # by its name, which `refs` has
        ("hub/models--org--base/snapshots/4567", None, False),
        ("hub/models--org--base/snapshots/4567", "v2", True),
        ("hub/models--org--base/snapshots/v2", None, False),
    ],
)
def test_a_base_of_another_revision_is_refused(registered, tmp_path, model, revision, same):
    refs = tmp_path / "hub" / "models--org--base" / "refs"
    refs.mkdir(parents=True)
    (refs / "v2").write_text("0123\n")
    save_adapter(tmp_path / "own", PLAN, base_model_name_or_path="org/base", revision="v2")
    asked = config(tmp_path / "own", model if model == "org/base" else tmp_path / model)
    asked.model_config.revision = revision
    if same:
        load(registered, asked)
    else:
        with pytest.raises(ValueError, match="revision v2 of org/base.*add --revision v2"):
            load(registered, asked)
        asked.additional_config["alphalora_any_base"] = True
        load(registered, asked)


def test_a_directory_has_no_revisions(registered, tmp_path):
    (tmp_path / "base").mkdir()
    place = str(tmp_path / "base")
    save_adapter(tmp_path / "own", PLAN, base_model_name_or_path=place, revision="v2")
    load(registered, config(tmp_path / "own", place))


def test_a_base_that_the_adapter_does_not_name_must_be_confirmed(registered, tmp_path):
    save_adapter(tmp_path, PLAN, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="a base that it does not name"):
        load(registered, config(tmp_path))


def test_shapes_are_checked_even_where_the_name_was_confirmed(registered, tmp_path, monkeypatch):
    save_adapter(tmp_path, PLAN)
    monkeypatch.setitem(vllm_layers.SIZES, "mlp.up_proj", (22, 16))
    extra = {"alphalora": str(tmp_path), "alphalora_any_base": True}
    with pytest.raises(ValueError, match="serve the base that it was trained on"):
        load(registered, config(tmp_path, "other", additional_config=extra))


def test_weights_are_not_loaded_again(registered, tmp_path):
    save_adapter(tmp_path, PLAN)
    model, loader = load(registered, asked := config(tmp_path))
    again = registered["alphalora"](SimpleNamespace(load_format="alphalora"))
    for act in (
        lambda: again.get_all_weights(asked.model_config, model),
        lambda: loader.load_weights(model, asked.model_config),
        lambda: model.load_weights(iter([])),  # as for weights that come without a loader
    ):
        with pytest.raises(ValueError, match="start vLLM anew"):
            act()


def test_the_entry_point_is_declared():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    plugins = project["entry-points"]["vllm.general_plugins"]
    assert plugins == {"alphalora": "axolotl_alphalora.vllm:register"}


LAZY = """
import sys
from axolotl_alphalora.vllm import register
register(); register()
heavy = {"torch", "safetensors", "vllm", "peft", "transformers", "axolotl", "click"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
sys.path.insert(0, sys.argv[1])
import vllm.model_executor.model_loader as loaders
print(loaders.formats)
import json; print(json.dumps(sorted(heavy & set(sys.modules))))
"""


def test_a_vllm_that_does_not_ask_for_it_imports_nothing_for_it(fresh_process, tmp_path):
    """The format is there as soon as vLLM imports its own loaders, which needs them anyway."""
    files = {
        "logger.py": "def init_logger(name): ...",
        "model_executor/model_loader/__init__.py": (
            "from .default_loader import DefaultModelLoader\n"
            "formats = []\n"
            "def register_model_loader(name):\n"
            "    formats.append(name)\n"
            "    return lambda loader: loader\n"
        ),
        "model_executor/model_loader/default_loader.py": "class DefaultModelLoader: ...",
    }
    for folder in ("", "model_executor"):
        (tmp_path / "vllm" / folder).mkdir()
        (tmp_path / "vllm" / folder / "__init__.py").touch()
    for name, text in files.items():
        (tmp_path / "vllm" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "vllm" / name).write_text(text)
    out = fresh_process("-c", LAZY, tmp_path).stdout.splitlines()
    assert out[0] == "['alphalora']"
    assert json.loads(out[1]) == ["torch", "vllm"]
