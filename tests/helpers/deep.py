"""Random base models with well over twenty target layers, past every threshold on their number."""

import copy
import functools

import torch
import transformers as hf

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
BASES = {
    "llama": (hf.LlamaForCausalLM, lambda **sizes: hf.LlamaConfig(**SHAPE | sizes)),
    "qwen2-moe": (
        hf.Qwen2MoeForCausalLM,
        lambda **sizes: hf.Qwen2MoeConfig(
            **SHAPE | sizes,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=32,
            num_experts=4,
            num_experts_per_tok=2,
        ),
    ),
    "deepseek-v3": (
        hf.DeepseekV3ForCausalLM,
        lambda **sizes: hf.DeepseekV3Config(
            **SHAPE | LATENT | {"num_key_value_heads": 4} | sizes,
            moe_intermediate_size=16,
            n_routed_experts=4,
            n_group=2,
            topk_group=1,
            num_experts_per_tok=2,
            first_k_dense_replace=2,
        ),
    ),
    "jamba": (
        hf.JambaForCausalLM,
        lambda **sizes: hf.JambaConfig(
            **SHAPE | sizes,
            num_experts=4,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            mamba_d_state=8,
            mamba_dt_rank=4,
        ),
    ),
}
IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 3, 4, 6, 8]])


@functools.cache
def _built(family, sizes):
    kind, shape = BASES[family]
    torch.manual_seed(0)
    return kind(shape(**dict(sizes))).eval()


def base(family, **sizes):
    """A copy of the family's model; sizes of its config can be changed."""
    return copy.deepcopy(_built(family, tuple(sizes.items())))


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits
