"""A tiny Llama, and tokenizers of bytes and of words."""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TINY_LLAMA = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
"""Two blocks, hidden 64: big enough for bitsandbytes' block size."""


def tiny_llama_config(**changes) -> LlamaConfig:
    return LlamaConfig(**(TINY_LLAMA | changes))


def tiny_llama(**changes) -> LlamaForCausalLM:
    """The same random weights each time."""
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_llama_config(**changes))


def byte_tokenizer(
    texts: Iterable[str] = (), *, vocab_size: int = 300, bos: bool = False
) -> PreTrainedTokenizerFast:
    """A token for each byte, and for what the texts repeat; `bos` puts `<s>` before all."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )


def word_tokenizer(size: int = 97, **special: str) -> PreTrainedTokenizerFast:
    """As many words as a tiny model knows: `w1`, `w2`, ...; 0 is `<pad>` and 3 is `<unk>`."""
    words = {f"w{i}": i for i in range(size) if i not in (0, 3)} | {"<pad>": 0, "<unk>": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", **special
    )


def save_tiny_model(folder: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> None:
    """The tiny Llama with a byte-level tokenizer, or the one that is given."""
    tokenizer = tokenizer or byte_tokenizer(["hello world"])
    model = tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=512)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
