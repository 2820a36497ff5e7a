"""A tiny model on disk, a cache of its own, and the command line in this process."""

import json

import pytest
from click.testing import CliRunner
from transformers import LlamaForCausalLM

from axolotl_alphalora.cli import alphalora
from helpers.models import tiny_llama


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALPHALORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_llama(num_hidden_layers=4).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def broken(tmp_path_factory, model):
    """The model with a matrix of rank 4, one of rank 2 and one of zeros."""
    folder = tmp_path_factory.mktemp("model") / "broken"
    changed = LlamaForCausalLM.from_pretrained(model)
    layers = changed.model.layers
    layers[1].self_attn.q_proj.weight.data[4:] = 0
    layers[2].self_attn.k_proj.weight.data[2:] = 0
    layers[3].mlp.up_proj.weight.data.zero_()
    changed.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def run():
    def invoke(*arguments):
        return CliRunner().invoke(alphalora, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture
def columns(run):
    def compare(source, *specs):
        result = run("plan", source, "--compare", *specs, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)["columns"]

    return compare
