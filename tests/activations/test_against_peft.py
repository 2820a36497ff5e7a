"""PEFT's own EVA on the same batches: the same ratios, and the same ranks."""

import pytest
import torch
from peft import EvaConfig, LoraConfig
from peft.tuners.lora import eva

from axolotl_alphalora.activations import FEWEST_TOKENS, measure_explained_variance
from axolotl_alphalora.allocation import (
    AllocationRequest,
    Budget,
    Evidence,
    build_plan,
    components_needed,
)
from axolotl_alphalora.samples import Sample

LENGTHS = (40, 24, 17, 47, 33, 31, 20, 44) * 4
"""Rows of a batch. PEFT updates its SVD for each batch, we do once there are this many tokens."""


def batches(count=2):
    """Rows of unequal length, padded right."""
    assert sum(LENGTHS) == FEWEST_TOKENS
    generator = torch.Generator().manual_seed(1)
    size = (count, len(LENGTHS), max(LENGTHS))
    # Few tokens are frequent, as in text: all alike would hide what the spectra differ in.
    ids = (torch.rand(size, generator=generator) ** 3 * 48).long()
    mask = torch.stack([torch.arange(max(LENGTHS)) < n for n in LENGTHS]).long()
    return [{"input_ids": row, "attention_mask": mask.clone()} for row in ids]


def by_peft(model, names, rank, rho, monkeypatch):
    """Ratios of each SVD, named by its first layer, and the rank of each layer."""
    made = []

    class Hook(eva.SVDHook):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(eva, "SVDHook", Hook)
    config = LoraConfig(
        r=rank, target_modules=names, init_lora_weights="eva", eva_config=EvaConfig(rho=rho)
    )
    config.eva_config.tau = -1.0  # so that it stops after two batches
    state = eva.get_eva_state_dict(model, batches(), config, show_progress_bar=False)
    assert all(int(hook.svd.n_samples_seen_) == 2 * FEWEST_TOKENS for hook in made)
    ratios = {hook.name: hook.svd.explained_variance_ratio_.tolist() for hook in made}
    return ratios, {name: len(components) for name, components in state.items()}


@pytest.mark.works("Allocation", "ranks by explained variance (EVA), as PEFT finds them")
@pytest.mark.parametrize(("rank", "rho"), [(4, 2.0), (6, 1.5), (3, 1.0)])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_ratios_and_ranks_are_pefts(tiny, linears, monkeypatch, name, rank, rho):
    model = tiny(name).eval()
    names = linears(model)
    shapes = {n: _shape(model.get_submodule(n)) for n in names}
    theirs, ranks = by_peft(model, names, rank, rho, monkeypatch)
    samples = [
        Sample("data", {key: value[row : row + 1] for key, value in batch.items()})
        for batch in batches()
        for row in range(len(LENGTHS))
    ]
    request = AllocationRequest(
        base_model="tiny",
        strategy="eva",
        options={"rho": rho},
        budget=Budget(experts_per_block=rank, min_experts=0),
        spend="rank",
        rank=1,
    )
    components = components_needed(request, shapes)
    assert components == rank * rho
    found = measure_explained_variance(model, names, samples, components)
    for owner, ratios in theirs.items():
        assert found.ratios[owner] == pytest.approx(ratios, rel=1e-3)

    evidence = Evidence(explained_variances=found.by_expert(1))
    plan = build_plan(request, shapes, evidence)
    ours = plan.numbers
    assert sum(ours.values()) == sum(ranks.values()) == rank * len(names)
    # Layers of one input tie, so that which of them gets the last component is no one's choice.
    alike = {}
    for module in names:
        alike.setdefault(found.ratios[module], []).append(module)
    assert len(alike) == len(theirs) == (len(names) if name == "gpt2" else len(names) - 6)
    for members in alike.values():
        assert sorted(ours[n] for n in members) == sorted(ranks[n] for n in members)
    if rho > 1:
        assert len(set(ranks.values())) > 1, "EVA redistributes here"
    else:
        assert set(ours.values()) == set(ranks.values()) == {rank}


def _shape(module):
    weight = module.weight
    return tuple(weight.shape) if isinstance(module, torch.nn.Linear) else tuple(weight.shape[::-1])
