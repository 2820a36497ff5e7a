"""The host's adapter options that `adapter: alphalora` refuses: the table, and the check by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..hosts.constants import LORA_KERNELS
from .options import (
    Refusal,
    differs_from,
    is_ebft,
    more_than_one,
    off_where_trl_wraps,
    on_quantised_base,
    under_fsdp,
    where_trl_wraps,
    with_4bit,
    with_4bit_under_fsdp,
    without_4bit,
)

_REMOVE = "Remove the option"
_OR_FALSE = "Remove the option or set it to false"
_PLAIN_LORA = "Remove the option, or use `adapter: lora`"
_ONE_WEIGHT = "a routed adapter chooses experts per token, so there is no single weight to merge"
_BASE_EXPERTS = (
    "to train LoRA on the stacked experts of a mixture-of-experts base, and to quantise them, use "
    "`adapter: qlora` with `lora_target_parameters` and `quantize_moe_experts: true`"
)


def _flag(key: str, reason: str, remedy: str = _REMOVE) -> Refusal:
    return Refusal(key, reason, remedy, {key: True})


REFUSED: tuple[Refusal, ...] = (
    _flag(
        "peft_use_dora",
        "DoRA rescales one merged update per layer, and routed experts have none",
        _PLAIN_LORA,
    ),
    Refusal(
        "peft.loftq_config",
        "LoftQ fits one A and one B to the quantisation error, not routed experts",
        _PLAIN_LORA,
        {"peft": {"loftq_config": {"loftq_bits": 4}}},
        differs_from(None),
    ),
    Refusal(
        "lora_rank_pattern",
        "the plan says how much capacity each layer gets, in experts or in rank",
        "Use the `allocation` of the `alphalora:` block to give some blocks more capacity",
        {"lora_rank_pattern": {"q_proj": 4}},
    ),
    Refusal(
        "lora_alpha_pattern",
        "every expert has the scaling given by `lora_alpha`",
        _REMOVE,
        {"lora_alpha_pattern": {"q_proj": 4}},
    ),
    Refusal(
        "lora_target_parameters",
        "experts can be added to linear layers only, not to bare parameters",
        f"Name linear layers in `lora_target_modules`; {_BASE_EXPERTS}",
        {"lora_target_parameters": ["mlp.experts.gate_up_proj"]},
    ),
    _flag(
        "lora_fan_in_fan_out",
        "it does nothing: experts act on a layer's input and output, however its weight is stored",
    ),
    _flag(
        "lora_fp32_gradients",
        "it accumulates the gradients of lora and qlora adapters only",
        "Remove the option; adapter weights are fp32 unless `peft_autocast_adapter_dtype: false`",
    ),
    Refusal(
        "loraplus_lr_embedding",
        "it is a learning rate for the LoRA factors of embeddings, which get no experts",
        "Remove the option; `embedding_lr` is that of embeddings in `lora_modules_to_save`",
        {"loraplus_lr_embedding": 1e-4},
        differs_from(1e-6),
    ),
    *(
        Refusal(
            key,
            "the fused kernels compute one A and one B per layer, not routed experts",
            _OR_FALSE,
            {key: True},
        )
        for key in LORA_KERNELS
    ),
    Refusal(
        "peft_init_lora_weights",
        "experts start from the default initialisation (A uniform, B zero) only",
        "Remove the option or set it to true",
        {"peft_init_lora_weights": "pissa"},
        differs_from(True),
    ),
    Refusal(
        "peft_layer_replication",
        "the number of experts is planned for the checkpoint's own blocks",
        _REMOVE,
        {"peft_layer_replication": [[0, 1]]},
    ),
    Refusal(
        "peft_trainable_token_indices",
        "single token rows cannot be trained next to routed experts",
        "Train the whole layer with `lora_modules_to_save: [embed_tokens, lm_head]`",
        {"peft_trainable_token_indices": [1, 2]},
    ),
    _flag(
        "peft_ensure_weight_tying",
        "tied modules in `lora_modules_to_save` are copied, not tied",
        _OR_FALSE,
    ),
    Refusal(
        "merge_lora",
        _ONE_WEIGHT,
        "Make a plain LoRA of it first, which can be merged: `alphalora export OUTPUT_DIR --data "
        "CONFIG.yml --output LORA_DIR`",
        {"merge_lora": True},
    ),
    Refusal(
        "merge_method",
        _ONE_WEIGHT,
        _REMOVE,
        {"merge_method": "legacy"},
        differs_from("memory_efficient"),  # the default of Axolotl 0.20
    ),
    *(
        Refusal(
            name,
            "LISA unfreezes blocks of the base model, which an adapter must leave frozen",
            _REMOVE,
            {name: 2},
        )
        for name in ("lisa_n_layers", "lisa_step_interval")
    ),
    *(
        Refusal(name, f"ReLoRA merges as it trains, but {_ONE_WEIGHT}", _REMOVE, {name: example})
        for name, example in (
            ("relora", True),
            ("relora_cpu_offload", True),
            ("relora_prune_ratio", 0.9),
        )
    ),
    Refusal(
        "unfrozen_parameters",
        "it freezes the experts and trains the base parameters that it names",
        "Name modules to train in full in `lora_modules_to_save`",
        {"unfrozen_parameters": ["^lm_head.weight$"]},
    ),
    Refusal(
        "spectrum_top_fraction",
        "SpectrumPlugin freezes the experts and trains base parameters that it picks",
        "Remove SpectrumPlugin from `plugins:`",
        {"spectrum_top_fraction": 0.5},
        differs_from(None),
    ),
    Refusal(
        "peft_autocast_adapter_dtype",
        "for `rl: dpo`, `ipo` and `kto` TRL adds the adapter, and keeps its weights in fp32",
        _REMOVE,
        {"peft_autocast_adapter_dtype": False, "rl": "dpo"},
        off_where_trl_wraps,
    ),
    _flag("flash_attn_fuse_mlp", "fused MLPs have no separate linear layers to add experts to"),
    _flag("tiled_mlp", "every tile would count as a pass of its own in the balance loss"),
    _flag("use_onebitllms", "ternary linear layers are trained in full and cannot carry experts"),
    _flag(
        "gptq",
        "experts are implemented for bitsandbytes and unquantised bases only",
        "Use an unquantised checkpoint, with `load_in_4bit` or `load_in_8bit` if you like",
    ),
    *(
        Refusal(
            name,
            "Axolotl stages NF4 weights on the CPU for `adapter: qlora` only",
            f"Remove the option or set it to {str(default).lower()}",
            {name: example},
            differs_from(default),
        )
        for name, default, example in (
            ("nf4_backend", "bitsandbytes", "torchao"),
            ("qlora_sharded_model_loading", False, True),
        )
    ),
    Refusal(
        "quantize_moe_experts",
        "Axolotl quantises a base model's own experts for `lora` and `qlora` only",
        f"Remove the option; {_BASE_EXPERTS}",
        {"quantize_moe_experts": True},
        early=True,
    ),
    _flag("nvfp4_merge_aware", f"it trains against merged weights, but {_ONE_WEIGHT}"),
    Refusal(
        "qat",
        "fake quantisation replaces linear layers before experts are added",
        _REMOVE,
        {"qat": {"weight_dtype": "int4"}},
        differs_from(None),
    ),
    _flag("ple_cpu_offload", "Axolotl keeps such tables on the CPU for `lora` and `qlora` only"),
    Refusal(
        "load_in_8bit",
        "`load_in_4bit` is set as well, and the base model has one precision",
        "Keep one of the two",
        {"load_in_4bit": True, "load_in_8bit": True},
        with_4bit,
    ),
    Refusal(
        "bnb_config_kwargs",
        "it changes the bitsandbytes settings of `load_in_4bit`, which is not set",
        "Set `load_in_4bit: true` or remove the option",
        {"bnb_config_kwargs": {"bnb_4bit_use_double_quant": False}},
        without_4bit,
    ),
    Refusal(
        "fsdp_config.cpu_ram_efficient_loading",
        "one rank alone would quantise the base, which Axolotl hands on to the others for "
        "`adapter: qlora` only",
        "Set it to false: each rank then loads and quantises the whole base before it is sharded",
        {"fsdp_config": {"cpu_ram_efficient_loading": True}, "load_in_4bit": True},
        on_quantised_base,
        early=True,
    ),
    Refusal(
        "fp16",
        "under FSDP a 4-bit base works in bf16 and fp32 only",
        "Set `bf16: true` in its stead, or use DDP",
        {"fp16": True, "fsdp_config": {"reshard_after_forward": True}, "load_in_4bit": True},
        with_4bit_under_fsdp,
    ),
    Refusal(
        "lora_modules_to_save",
        "under FSDP Axolotl's final save gathers the experts only, and fails on whole modules",
        "Remove the option, or use DDP or DeepSpeed",
        {"lora_modules_to_save": ["lm_head"], "fsdp_config": {"reshard_after_forward": True}},
        under_fsdp,
    ),
    *(
        Refusal(
            name,
            "each rank would hold a part of a layer, but experts are added to whole layers",
            "Use data parallelism (DDP, FSDP or DeepSpeed ZeRO)",
            {name: 2},
            more_than_one,
        )
        for name in ("tensor_parallel_size", "expert_parallel_size")
    ),
    Refusal(
        "context_parallel_size",
        "each rank would see a part of a sequence, and the balance loss would count it as whole",
        "Use data parallelism (DDP, FSDP or DeepSpeed ZeRO)",
        {"context_parallel_size": 2},
        more_than_one,
    ),
    Refusal(
        "lora_model_dir",
        "for `rl: dpo`, `ipo` and `kto` Axolotl lets TRL add a new adapter, and would drop this "
        "one's weights without a word",
        "Start a new adapter, or resume the run itself with `resume_from_checkpoint`",
        {"lora_model_dir": "./adapter", "rl": "dpo"},
        where_trl_wraps,
    ),
    Refusal(
        "trl.use_vllm",
        f"vLLM gets the adapter merged or as plain LoRA, but {_ONE_WEIGHT}",
        "Set `trl.use_vllm: false` to generate with the training model",
        {"rl": "grpo", "trl": {"use_vllm": True}},
    ),
    Refusal(
        "rl",
        "EBFT's embeddings, rewards and block-wise masks have not been tried with routed experts",
        "Use dpo, ipo, kto, orpo, simpo, grpo or gdpo, remove `rl` for supervised fine-tuning, or "
        "use `adapter: lora`",
        {"rl": "ebft", "ebft": {"mode": "strided"}},
        is_ebft,
    ),
    *(
        Refusal(key, f"it {what}, but {_ONE_WEIGHT}", _REMOVE, {key: example}, differs_from(None))
        for key, what, example in (
            ("quantization", "quantises a whole model after training", {"weight_dtype": "int8"}),
            ("export", "converts a whole model to GGUF", {"quantize": "q8_0"}),
        )
    ),
    Refusal(
        "lm_eval_post_train",
        "it starts lm_eval in a process that does not know the adapter",
        "Set it to false (LMEvalPlugin's default is true) and run `alphalora lm-eval config.yml` "
        "after training",
        {"lm_eval_post_train": True},
    ),
    Refusal(
        "mora",
        "MoRA is another adapter and nothing reads its block here",
        "Remove the block and MoraPlugin from `plugins:`",
        {"mora": {"use_mora": True}},
        differs_from(None),
    ),
    *(
        Refusal(
            f"mixlora_{name}",
            "it configures `adapter: mixlora` and nothing reads it here",
            "Use the `alphalora:` block (experts_per_block, top_k, aux_loss_coef)",
            {f"mixlora_{name}": example},
            differs_from(default),
        )
        for name, default, example in (
            ("num_experts", 8, 4),
            ("top_k", 2, 1),
            ("router_aux_loss_coef", 0.01, 0.1),
            ("router_init_range", 0.02, 0.1),
            ("jitter_noise", 0.0, 0.1),
            ("expert_lora_r", None, 8),
            ("expert_lora_alpha", None, 8),
            ("expert_lora_dropout", None, 0.1),
        )
    ),
)


def offending(cfg_dict: Mapping[str, Any], early: bool = False) -> list[Refusal]:
    """The rows of `REFUSED` that a configuration runs into, in the table's order.

    Args:
        cfg_dict: The configuration as nested mappings.
        early: Go by the rows alone that come before the host's own validators.
    """
    rows = [row for row in REFUSED if row.early or not early]
    return [row for row in rows if row.applies(_value(cfg_dict, row.key), cfg_dict)]


def check(cfg_dict: Mapping[str, Any], early: bool = False) -> None:
    """Refuse a configuration, naming every offending option at once.

    Args:
        cfg_dict: The configuration as nested mappings, with `adapter: alphalora`.
        early: As for `offending`.

    Raises:
        ValueError: If an option is set that does nothing or does harm.
    """
    rows = offending(cfg_dict, early)
    if rows:
        lines = "\n".join(f"  - {row.message()}" for row in rows)
        raise ValueError(f"`adapter: alphalora` does not support:\n{lines}")


def _value(cfg_dict: Mapping[str, Any], key: str) -> Any:
    value: Any = cfg_dict
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return None
        # The host still takes the keys of `fsdp_config` with this prefix.
        value = value.get(part, value.get(f"fsdp_{part}"))
    return value
