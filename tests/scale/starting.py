"""The model with an adapter that a run of `ranks.py` starts with, from the folder it made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from helpers import settings
from helpers.balancing import adapted
from helpers.models import word_tokenizer

NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.float32,
}


def fresh(folder: Path, **options: Any) -> PeftModel:
    return adapted(LlamaForCausalLM.from_pretrained(folder / "base", **options))


def balanced_globally(folder: Path) -> PeftModel:
    base = LlamaForCausalLM.from_pretrained(folder / "base")
    return adapted(base, balance_over="global_batch")


CUT = {"top_k": 0.5, "segments": 2, "router_rank": 3, "share_a": True}


def cut(folder: Path) -> PeftModel:
    return adapted(LlamaForCausalLM.from_pretrained(folder / "base"), **CUT)


def on_nf4(folder: Path) -> PeftModel:
    return fresh(folder, quantization_config=BitsAndBytesConfig(**NF4))


def by_the_host(base: str = "base", **changes: Any) -> Callable[[Path], PeftModel]:
    """The base as Axolotl's loader makes it with the real plugin, but for the experts' numbers."""

    def load(folder: Path) -> PeftModel:
        from axolotl.integrations.base import PluginManager
        from axolotl.loaders.model import ModelLoader
        from axolotl.utils.config import normalize_config

        from axolotl_alphalora import AlphaLoraPlugin

        class Adapting(AlphaLoraPlugin):
            def load_adapter(self, model, cfg, **options):
                return adapted(model), None

        # A mesh of CUDA devices, whatever there is.
        ModelLoader._set_parallel_config = lambda self: None
        PluginManager.get_instance().plugins[settings.NAME] = Adapting()
        cfg = settings.validate(
            settings.GPU,
            base_model=str(folder / base),
            attn_implementation="sdpa",
            tf32=False,
            fp16=False,
            **changes,
        )
        normalize_config(cfg)
        if not cfg.bf16:
            cfg.torch_dtype = torch.float32  # in fp16, which 8 bits are put in, rounding would show
        return ModelLoader(cfg, word_tokenizer(eos_token="w1")).load()[0]

    return load


def on_meta_but_for_rank_0(folder: Path) -> PeftModel:
    from axolotl.loaders.utils import materialize_trainable_meta_params

    model = fresh(folder, device_map={"": "meta" if dist.get_rank() else "cpu"})
    materialize_trainable_meta_params(model)
    return model


def loaded(folder: Path, start: str = "start") -> PeftModel:
    """The adapter from its files, on a base that ZeRO-3 partitions while it loads."""
    base = LlamaForCausalLM.from_pretrained(folder / "base")
    return PeftModel.from_pretrained(base, folder / start, is_trainable=True)
