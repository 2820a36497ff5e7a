"""Whose padding a router leaves out: that of the tokens it sees, whatever their number."""

import pytest
import torch
import transformers as hf
from peft import get_peft_model
from torch import nn

from axolotl_alphalora.adapter import (
    AlphaLoraConfig,
    AlphaLoraLayer,
    find_balancer,
    find_routers,
)
from axolotl_alphalora.adapter.usage import UsageMeter
from helpers.models import tiny_llama_config

SMALL = {"vocab_size": 97, "pad_token_id": 0, "decoder_start_token_id": 0}
BART = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64}
BART |= {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers",)}
BART |= {f"{part}_attention_heads": 4 for part in ("encoder", "decoder")}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4} | {
    "intermediate_size": 48,
    "vocab_size": 97,
}


def bert_to_bert():
    config = hf.EncoderDecoderConfig.from_encoder_decoder_configs(
        hf.BertConfig(**BERT), hf.BertConfig(**BERT)
    )
    config.pad_token_id, config.decoder_start_token_id = 0, 0
    return hf.EncoderDecoderModel(config)


SEQ2SEQ = {
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**SMALL, **T5)),
    "umt5": lambda: hf.UMT5ForConditionalGeneration(hf.UMT5Config(**SMALL, **T5)),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**SMALL, **BART)),
    "marian": lambda: hf.MarianMTModel(hf.MarianConfig(**SMALL, **BART)),
    "bert to bert": bert_to_bert,
}


def adapted(model, targets="all-linear", **options):
    torch.manual_seed(0)
    config = AlphaLoraConfig(r=2, num_experts=3, target_modules=targets, **options)
    return get_peft_model(model, config).train()


def counted(model, *args, **kwargs):
    """Tokens that each router counted in one training pass, by its module."""
    meter = find_balancer(model).usage["train"] = UsageMeter()
    model.get_base_model()(*args, **kwargs)
    usage = meter.pop(find_routers(model))
    return {name.rpartition(".")[0]: router.tokens for name, router in usage.items()}


def lengths_seen(model, **call):
    """Length of the rows that each layer sees; a pooler sees none."""
    found = {}
    layers = [m for m in model.modules() if isinstance(m, AlphaLoraLayer)]
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, args: found.__setitem__(layer.module_name, args[0].shape)
        )
        for layer in layers
    ]
    model.get_base_model()(**call)
    for hook in hooks:
        hook.remove()
    return {name: shape[1] for name, shape in found.items() if len(shape) == 3}


def assert_counts(model, want, **call):
    found = counted(model, **call)
    assert {name: found[name] for name in want} == want


def padded(length, real, low=3):
    ids = torch.randint(low, 97, (2, length))
    mask = torch.zeros_like(ids)
    for row, count in enumerate(real):
        mask[row, :count] = 1
    return ids, mask


@pytest.mark.works("Trainers", "encoder-decoders", "padding of either side counts for neither")
@pytest.mark.parametrize("family", SEQ2SEQ)
def test_an_encoder_s_padding_is_no_decoder_s(family):
    model = adapted(SEQ2SEQ[family]())
    # Sides of two lengths tell which layers see which tokens.
    ids, mask = padded(9, (9, 9))
    side = lengths_seen(model, input_ids=ids, attention_mask=mask, labels=ids[:, :5].contiguous())
    assert set(side.values()) == {9, 5}
    questions, real = padded(8, (3, 4))
    for length, targets in ((8, (8, 8)), (8, (2, 5)), (7, (7, 1))):
        answers, kept = padded(length, targets)
        labels = answers.masked_fill(kept == 0, -100)
        call = {"input_ids": questions, "attention_mask": real, "labels": labels}
        want = {name: 7 if seen == 9 else sum(targets) for name, seen in side.items()}
        assert_counts(model, want, **call)
    given = {"decoder_input_ids": answers, "decoder_attention_mask": kept, "labels": answers}
    want = {name: 7 if seen == 9 else 8 for name, seen in side.items()}
    assert_counts(model, want, input_ids=questions, attention_mask=real, **given)


def test_cross_attention_of_a_decoder_alone_goes_by_the_encoder_s_mask():
    config = hf.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, add_cross_attention=True)
    model = adapted(hf.GPT2LMHeadModel(config))
    ids, mask = padded(8, (3, 4))
    _, memory = padded(8, (5, 6))
    found = counted(
        model,
        input_ids=ids,
        attention_mask=mask,
        encoder_hidden_states=torch.randn(2, 8, 32),
        encoder_attention_mask=memory,
        labels=ids,
    )
    assert found
    for name, tokens in found.items():
        assert tokens == (11 if name.endswith("crossattention.c_attn") else 7), name


def test_an_image_s_patches_are_not_the_text_s_padding():
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"intermediate_size": 48, "image_size": 12, "patch_size": 4}
    text = tiny_llama_config(hidden_size=32, intermediate_size=48, pad_token_id=0)
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**vision), text_config=text, image_token_id=96
    )
    model = adapted(hf.LlavaForConditionalGeneration(config))
    ids, mask = torch.full((2, 10), 96), torch.ones(2, 10, dtype=torch.long)
    ids[:, 9], mask[:, 9] = 0, 0
    found = counted(
        model,
        input_ids=ids,
        attention_mask=mask,
        pixel_values=torch.randn(2, 3, 12, 12),
        labels=ids,
    )
    towers = {n: t for n, t in found.items() if "vision_tower" in n}
    texts = {n: t for n, t in found.items() if "language_model" in n}
    assert towers and set(towers.values()) == {20}  # nine patches and one class token a row
    assert texts and set(texts.values()) == {18}


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Electra"])
def test_the_choices_of_multiple_choice_are_flattened(kind):
    config = getattr(hf, f"{kind}Config")(**BERT, max_position_embeddings=40, pad_token_id=0)
    model = adapted(getattr(hf, f"{kind}ForMultipleChoice")(config), ["query", "value", "dense"])
    ids = torch.randint(3, 97, (2, 3, 8))
    mask = torch.zeros_like(ids)
    mask[..., :4] = 1
    found = counted(model, input_ids=ids, attention_mask=mask, labels=torch.zeros(2).long())
    layers = {n: t for n, t in found.items() if ".layer." in n}
    assert layers and set(layers.values()) == {2 * 3 * 4}


def test_positions_may_come_before_rows():
    config = hf.XLNetConfig(vocab_size=97, d_model=32, n_layer=2, n_head=4, d_inner=48)
    model = adapted(hf.XLNetLMHeadModel(config), ["layer_1", "layer_2"])
    ids, mask = padded(8, (3, 4))
    found = counted(model, input_ids=ids, attention_mask=mask, labels=ids)
    assert found and set(found.values()) == {7}


class Denoiser(nn.Module):
    """Its second argument, 2-D as a mask would be, is a time."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x, t, labels=None):
        return self.down(torch.relu(self.up(x)) * (1 + t))


@pytest.mark.parametrize("shape", [(6, 8), (2, 6, 8), (8,)])
def test_an_argument_is_a_mask_by_its_name_and_not_by_its_place(shape):
    model = adapted(Denoiser(), ["up", "down"])
    x = torch.randn(shape)
    for value in (0.0, 1.0):
        t = torch.full((*shape[:-1], 1) if len(shape) < 3 else (2, 1), value)
        tokens = max(1, x.shape[:-1].numel())
        if len(shape) == 3:
            t = t.unsqueeze(-1)
        assert counted(model, x, t) == counted(model, x, t=t) == {"up": tokens, "down": tokens}


def test_a_mask_given_by_position_is_found():
    model = adapted(hf.LlamaForCausalLM(tiny_llama_config()), ["q_proj"])
    ids, mask = padded(8, (3, 4))
    assert set(counted(model, ids, mask).values()) == {7}
    assert set(counted(model, ids, None).values()) == {16}
