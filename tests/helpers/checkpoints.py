"""Tiny random models of many families, and the ways in which checkpoints of them are stored."""

import json
import os
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.hrm_text import HrmTextConfig

from axolotl_alphalora.spectral import BaseModel, Cache, CheckpointWeights, WeightSource
from axolotl_alphalora.spectral.checkpoint import StoredTensors
from axolotl_alphalora.spectral.definition import linear_layers
from axolotl_alphalora.spectral.model_files import locate

_TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_TEXT, tie_word_embeddings=False),
    "tied llama": LlamaConfig(**_TEXT, tie_word_embeddings=True),
    "mistral": MistralConfig(**_TEXT),
    "qwen2": Qwen2Config(**_TEXT),
    "qwen3": Qwen3Config(**_TEXT, head_dim=8),
    "gemma2": Gemma2Config(**_TEXT, head_dim=8),
    "gemma3 text": Gemma3TextConfig(**_TEXT, head_dim=8),
    "gemma3": Gemma3Config(
        text_config=_TEXT | {"head_dim": 8},
        vision_config=_VISION,
        image_token_index=60,
        boi_token_index=61,
        eoi_token_index=62,
    ),
    "llava": LlavaConfig(
        text_config=LlamaConfig(**_TEXT),
        vision_config=CLIPVisionConfig(**_VISION, projection_dim=32),
        image_token_index=60,
    ),
    "phi3": Phi3Config(**_TEXT, **_TOKENS),
    "gpt2": GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2),
    "mixtral": MixtralConfig(**_TEXT, num_local_experts=2),
    "qwen3 moe": Qwen3MoeConfig(**_TEXT, head_dim=8, num_experts=2, moe_intermediate_size=16),
    "hrm": HrmTextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_layers_per_stack=2,
    ),
}


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """Return a model of a family with random weights."""
    config = CONFIGS[family]
    causal = type(config) in AutoModelForCausalLM._model_mapping
    factory = AutoModelForCausalLM if causal else AutoModelForImageTextToText
    torch.manual_seed(seed)
    return factory.from_config(config)


def pickled(directory: Path) -> None:
    """Turn a safetensors checkpoint into a PyTorch one, sharded or not as it is."""
    for file in directory.glob("*.safetensors"):
        torch.save(load_file(file), directory / _pickled_name(file.name))
        file.unlink()
    index = directory / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        names = content["weight_map"]
        content["weight_map"] = {key: _pickled_name(name) for key, name in names.items()}
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps(content))
        index.unlink()


def _pickled_name(name: str) -> str:
    return f"pytorch_{name.removesuffix('.safetensors')}.bin"


def settled(directory: Path, seconds: float = 60) -> None:
    """Let all files look as if nobody had changed them for a while."""
    then = time.time() - seconds
    for file in directory.iterdir():
        os.utime(file, (then, then))


def opened(
    directory: Path, cache: Cache | None = None
) -> tuple[WeightSource, dict[str, tuple[int, int]]]:
    """Return the weights of all linear layers of a checkpoint, and their shapes."""
    base = BaseModel(str(directory), cache=cache)
    shapes = base.layers(linear_layers, "linear")
    return base.weights(shapes), shapes


def written(
    directory: Path, weights: dict[str, torch.Tensor], cache: Cache | None = None
) -> CheckpointWeights:
    """Store matrices under the names of their modules and open them, without any model."""
    file = directory / "model.safetensors"
    save_file(
        {f"{name}.weight": tensor.clone().contiguous() for name, tensor in weights.items()}, file
    )
    stored = StoredTensors(locate(directory), cache)
    return CheckpointWeights(stored, {name: [f"{name}.weight"] for name in weights})


def shapes_of(weights: dict[str, torch.Tensor]) -> dict[str, tuple[int, int]]:
    """Return what a model would say of its layers."""
    return {name: (tensor.shape[0], tensor.shape[1]) for name, tensor in weights.items()}
