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

from axolotl_alphalora.quickstart.model import bundled_gguf

VOCABULARY = 97


def write_base(path, model, architecture, *, interleaved, more=()):
    """A tiny model as an F32 GGUF whose tokens are numbers.

    Args:
        path: The file.
        model: Of transformers.
        architecture: llama.cpp's name.
        interleaved: Whether rows of q and k are stored pair by pair.
        more: Names of methods of `gguf.GGUFWriter` with their argument.
    """
    config = model.config
    writer = gguf.GGUFWriter(str(path), architecture)
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", 4 * config.hidden_size))
    writer.add_head_count(heads)
    writer.add_head_count_kv(keys)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_vocab_size(VOCABULARY)
    for name, value in more:
        getattr(writer, name)(value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = ["a", "b", "ab", "Ċ", *(f"t{i}" for i in range(4, VOCABULARY))]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(len(tokens) - 1)
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


def pairs_together(rows, heads):
    """Rows 0, d/2, 1, d/2 + 1, ... of each head."""
    width = len(rows) // heads
    order = [i // 2 + (i % 2) * width // 2 for i in range(width)]
    return np.concatenate([rows[head * width :][order] for head in range(heads)])


def write_smollm2(path):
    """The quickstart's model as an F32 GGUF, with the rounding of the converted one."""
    reader = gguf.GGUFReader(str(bundled_gguf()))
    writer = gguf.GGUFWriter(str(path), reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value, types = field.contents(), field.types
        if field.name == "general.file_type":
            value = int(gguf.LlamaFileType.ALL_F32)
        writer.add_key_value(field.name, value, types[0], types[-1] if len(types) > 1 else None)
    for tensor in reader.tensors:
        weight = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        writer.add_tensor(tensor.name, weight.bfloat16().float().numpy())
    finish(writer)


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
