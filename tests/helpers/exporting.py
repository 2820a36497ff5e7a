"""Rows to export on, and how far an export is from its adapter by a separate sum in fp64."""

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from axolotl_alphalora.adapter import AlphaLoraConfig
from axolotl_alphalora.evaluation import load_adapted
from axolotl_alphalora.export import export_adapter
from axolotl_alphalora.export.factors import Factors
from axolotl_alphalora.export.lora import save_lora
from axolotl_alphalora.report.markdown import export_card
from axolotl_alphalora.samples import Sample


def rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        ids = torch.randint(1, 97, (1, 20), generator=generator)
        labels = ids.clone()
        labels[:, :6] = -100
        found.append(Sample("data", {"input_ids": ids, "labels": labels}))
    return found


def log_probabilities(model, sample):
    logits = model(input_ids=sample.inputs["input_ids"]).logits[0, :-1].double()
    return torch.log_softmax(logits, -1)[sample.inputs["labels"][0, 1:] != -100]


def divergence(routed, lora, samples):
    """KL divergence per labelled token."""
    with torch.no_grad():
        p, q = (
            torch.cat([log_probabilities(model, sample) for sample in samples])
            for model in (routed, lora)
        )
    return float((p.exp() * (p - q)).sum() / len(p))


def check_price(model, base, adapter, output):
    """Export, and compare the price with that of the files on a fresh base."""
    held_out = rows(4, 2)
    found = export_adapter(model, adapter, output, calibration=rows(8, 1), held_out=held_out)
    lora = PeftModel.from_pretrained(base(), output).eval()
    assert found.divergence.kl == pytest.approx(divergence(model, lora, held_out), rel=1e-3)


def with_lora(model, updates, folder, **options):
    folder.mkdir()
    save_lora(folder, updates, AlphaLoraConfig(task_type="CAUSAL_LM"), {}, **options)
    return PeftModel.from_pretrained(model, folder).eval()


def random_updates(model, scale=0.3):
    """Random updates of ranks that differ, for all linear layers of the blocks."""
    torch.manual_seed(1)
    found = {}
    for name, module in model.named_modules():
        parts = name.split(".")
        if hasattr(module, "weight") and module.weight.ndim == 2 and any(map(str.isdigit, parts)):
            rank = 2 + len(found) % 5
            sizes = module.weight.shape if hasattr(module, "nf") else module.weight.shape[::-1]
            a, b = torch.randn(rank, sizes[0]), torch.randn(sizes[1], rank)
            found[name] = Factors(a.double() / sizes[0] ** 0.5, b.double() * scale / rank**0.5)
    return found


def projection_updates(model, most, strength):
    """Random updates of the projections, of ranks 2 to ``most``, as large as their weights."""
    torch.manual_seed(0)
    found = {}
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            rank = 2 + len(found) % (most - 1)
            a = torch.randn(rank, module.in_features) / module.in_features**0.5
            b = torch.randn(module.out_features, rank) * strength * float(module.weight.std())
            found[name] = Factors(a.double(), b.double())
    return found


def routed(saved):
    """The model with the adapter of the fixture `saved`."""
    return load_adapted(LlamaForCausalLM.from_pretrained(saved / "base"), saved / "adapter")


def exported(saved, output, **options):
    """Export it; the model and what was found."""
    model = routed(saved)
    found = export_adapter(
        model,
        saved / "adapter",
        output,
        calibration=rows(20, 1),
        held_out=rows(8, 2),
        **{"card": lambda made: export_card(made, "base"), **options},
    )
    return model, found
