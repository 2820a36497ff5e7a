"""Exports of cut experts, low-rank routers and a shared A."""

import pytest
import torch

from axolotl_alphalora.evaluation import Moments, calibrate
from axolotl_alphalora.export.factors import build, fitted_mixing, mean_mixing, mixed, second_moment
from helpers import reference
from helpers.exporting import check_price, rows
from helpers.kinds import adapted, fresh, layers
from helpers.mixtures import COMBINATIONS, EVERYTHING, named

every_mixture = pytest.mark.parametrize("options", COMBINATIONS, ids=named)


def inputs_of(model, samples):
    seen = {}

    def note(layer, args):
        seen.setdefault(layer.module_name, []).append(args[0][0])

    hooks = [layer.register_forward_pre_hook(note) for layer in layers(model).values()]
    with torch.no_grad():
        for sample in samples:
            model(**sample.inputs)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


@every_mixture
def test_the_fit_is_at_least_as_near_as_the_mean_gates_on_every_module(options):
    """Both against the outputs of a plain loop over tokens and experts."""
    model = adapted("linear", **options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "router" in name:
                parameter *= 4
    samples = rows(6, 1)
    moments = calibrate(model, samples)
    updates = {
        method: build(model, moments, method=method) for method in ("least-squares", "mean-gate")
    }
    for name, x in inputs_of(model, samples).items():
        layer = layers(model)[name]
        shape = (layer.num_experts["default"], layer.r["default"], layer.top_k["default"])
        parts = [layer.part(part, "default") for part in layer.adapter_layer_names]
        want = reference.expert_mixture(
            x, *parts, num_experts=shape[0], rank=shape[1], top_k=shape[2],
            scaling=layer.scaling["default"],
        ).detach().double()  # fmt: skip
        errors = {}
        for method, found in updates.items():
            made = x.double() @ (found[name].b @ found[name].a).T
            errors[method] = float((made - want).norm() / want.norm())
            assert found[name].rank <= layer.alphalora_B["default"].shape[1]
        assert errors["least-squares"] <= errors["mean-gate"] * 1.001
        assert errors["mean-gate"] < 0.9
    if options["share_a"]:
        assert all(update.rank <= 4 for update in updates["mean-gate"].values())


@every_mixture
def test_mean_gates_weigh_each_expert(options):
    model = adapted("linear", **options).eval()
    samples = rows(3, 1)
    moments = calibrate(model, samples)
    for name, update in build(model, moments, method="mean-gate").items():
        layer = layers(model)[name]
        a, b = layer.alphalora_A["default"].double(), layer.alphalora_B["default"].double()
        rank, want = layer.r["default"], 0.0
        for e, gate in enumerate(moments[name].mean_gates):
            start = e * rank % len(a)
            want = want + gate * b[:, e * rank : (e + 1) * rank] @ a[start : start + rank]
        torch.testing.assert_close(update.b @ update.a, (layer.scaling["default"] * want).detach())


def test_fewer_rows_compute_the_same_and_are_compressed_by_their_own_moments():
    torch.manual_seed(0)
    a, b, router, down = (torch.randn(*s) for s in ((4, 9), (8, 24), (6, 3), (3, 9)))
    moments = Moments.empty(6, 24, 4, 3)
    x = torch.randn(50, 9)
    moments.add(x, a, router, 2, down)
    mixing = fitted_mixing(moments)
    got = mixed(a, b, down, 1.5, mixing)
    assert got.rank == 7
    want = 1.5 * b.double() @ mixing @ torch.cat([a, down]).double()
    torch.testing.assert_close(got.b @ got.a, want)
    hidden = x.double() @ got.a.T
    torch.testing.assert_close(
        second_moment(moments, mixing), hidden.T @ hidden, rtol=1e-5, atol=1e-5
    )
    assert mixed(a, b, down, 1.5, mean_mixing(moments)).rank == 4


def test_the_price_is_that_of_the_files(tmp_path):
    model = adapted("linear", **EVERYTHING).eval()
    model.save_pretrained(tmp_path / "adapter")
    check_price(model, lambda: fresh("linear"), tmp_path / "adapter", tmp_path / "lora")
