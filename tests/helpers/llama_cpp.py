"""llama.cpp in this process, by the wheel xllamacpp, and bases for it in full precision.

The bases are written here, from llama.cpp's own description of each architecture, so that what the
package writes is tested against something it has not made.
"""

import json
from contextlib import contextmanager
from urllib.request import Request, urlopen

import gguf
import numpy as np
import torch
import xllamacpp
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from axolotl_alphalora.quickstart.model import bundled_gguf

VOCABULARY = 97


def write_base(path, model, architecture, *, interleaved, more=(), tokenizer=None):
    """A tiny model as an F32 GGUF.

    Args:
        path: The file.
        model: Of transformers.
        architecture: llama.cpp's name.
        interleaved: Whether rows of q and k are stored pair by pair.
        more: Names of methods of `gguf.GGUFWriter` with their argument.
        tokenizer: One of bytes; without it the tokens are made up.
    """
    config = model.config
    writer = gguf.GGUFWriter(str(path), architecture)
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", 4 * config.hidden_size))
    writer.add_head_count(heads)
    writer.add_head_count_kv(keys)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_vocab_size(config.vocab_size)
    for name, value in more:
        getattr(writer, name)(value)
    add_tokenizer(writer, tokenizer)
    names = gguf.get_tensor_name_map(
        next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture),
        config.num_hidden_layers,
    )
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        value = tensor.float().numpy()
        if architecture == "gpt2" and ".c_" in name and value.ndim == 2:
            value = value.T
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            value = value + 1
        if interleaved and name.endswith(("q_proj.weight", "k_proj.weight")):
            value = pairs_together(value, keys if "k_proj" in name else heads)
        writer.add_tensor(stored, np.ascontiguousarray(value))
    finish(writer)


def add_tokenizer(writer, tokenizer):
    tokens, merges, special = ["a", "b", "ab", "Ċ"], ["a b"], []
    tokens += [f"t{i}" for i in range(len(tokens), VOCABULARY)]
    end = VOCABULARY - 1
    if tokenizer is not None:
        known = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        tokens = sorted(known["vocab"], key=known["vocab"].get)
        merges = [" ".join(pair) for pair in known["merges"]]
        special, end = tokenizer.all_special_tokens, tokenizer.eos_token_id
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([int(control if token in special else normal) for token in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)


def pairs_together(rows, heads):
    """Rows 0, d/2, 1, d/2 + 1, ... of each head."""
    width = len(rows) // heads
    order = [i // 2 + (i % 2) * width // 2 for i in range(width)]
    return np.concatenate([rows[head * width :][order] for head in range(heads)])


def smollm2(path):
    """The quickstart's model, dequantised: written as an F32 GGUF, and as transformers has it.

    Returns:
        The model, with the numbers of the file, and its tokenizer.
    """
    source = bundled_gguf()
    reader = gguf.GGUFReader(str(source))
    said = {field.name: field.contents() for field in reader.fields.values()}
    said["general.file_type"] = int(gguf.LlamaFileType.ALL_F32)
    writer = gguf.GGUFWriter(str(path), said["general.architecture"])
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            types = field.types
            more = types[-1] if len(types) > 1 else None
            writer.add_key_value(field.name, said[field.name], types[0], more)
    weights = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in reader.tensors
    }
    for name, weight in weights.items():
        writer.add_tensor(name, weight)
    finish(writer)
    config = LlamaConfig(
        vocab_size=len(said["tokenizer.ggml.tokens"]),
        hidden_size=said["llama.embedding_length"],
        intermediate_size=said["llama.feed_forward_length"],
        num_hidden_layers=said["llama.block_count"],
        num_attention_heads=said["llama.attention.head_count"],
        num_key_value_heads=said["llama.attention.head_count_kv"],
        rms_norm_eps=said["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": said["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        eos_token_id=said["tokenizer.ggml.eos_token_id"],
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        weight = weights[names.get_name(name, try_suffixes=(".weight",))]
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            order = pairs_together(np.arange(len(weight)), heads)
            weight = weight[np.argsort(order)]
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    return model.eval().requires_grad_(False), tokenizer


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def set_alpha(path, alpha):
    """Write another alpha into a LoRA that is there."""
    reader = gguf.GGUFReader(str(path), "r+")
    field = reader.fields["adapter.lora.alpha"]
    field.parts[field.data[0]][0] = alpha
    reader.data.flush()


class Server:
    """llama.cpp's HTTP server with a base and maybe a LoRA on it."""

    def __init__(self, base, lora=None, scale=1.0):
        params = xllamacpp.CommonParams()
        params.model.path = str(base)
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 512, 1, False, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        if lora is not None:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), scale)]
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = xllamacpp.Server(params)
        self.url = self._server.listening_address

    def greedy(self, prompt, tokens):
        """The most likely continuation of a text or of token ids, and its log-probabilities."""
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 1}
        request = Request(
            f"{self.url}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urlopen(request) as response:
            (choice,) = json.load(response)["choices"]
        steps = choice["logprobs"]["content"]
        return [step["id"] for step in steps], [step["logprob"] for step in steps]


@contextmanager
def served(base, lora=None, scale=1.0):
    """A server that is gone afterwards."""
    server = Server(base, lora, scale)
    try:
        yield server
    finally:
        del server._server


@torch.no_grad()
def greedy(model, ids, tokens, end=VOCABULARY - 1):
    """The same by transformers: ids and log-probabilities."""
    found, logprobs = list(ids), []
    for _ in range(tokens):
        if logprobs and found[-1] == end:
            break
        logits = model(input_ids=torch.tensor([found])).logits[0, -1].double()
        scores = logits.log_softmax(-1)
        found.append(int(scores.argmax()))
        logprobs.append(float(scores.max()))
    return found[len(ids) :], logprobs
