"""A saved adapter that is worth exporting."""

import pytest
import torch
from transformers import LlamaForCausalLM

from helpers.balancing import adapted
from helpers.models import tiny_llama


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A base and an adapter whose experts and router matter."""
    folder = tmp_path_factory.mktemp("saved")
    base = tiny_llama()
    base.save_pretrained(folder / "base")
    model = adapted(LlamaForCausalLM.from_pretrained(folder / "base"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "router" in name:
                parameter *= 4
            elif "alphalora_B" in name:
                parameter *= 2
    model.save_pretrained(folder / "adapter")
    return folder
