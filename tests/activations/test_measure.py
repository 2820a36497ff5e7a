"""Ratios against a plain SVD of all inputs at once, and what is left as it was."""

import copy
import warnings

import pytest
import torch
from torch import nn

from axolotl_alphalora.activations import (
    FEWEST_TOKENS,
    Components,
    ExplainedVariance,
    measure_explained_variance,
)
from axolotl_alphalora.samples import Sample


def inputs_of(model, names, samples):
    """Every token that goes into each layer, ``[tokens, in]`` in float64."""
    model = copy.deepcopy(model).eval()
    found = {name: [] for name in names}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: found[name].append(args[0].flatten(0, -2).double())
        )
    with torch.no_grad():
        for sample in samples:
            model(input_ids=sample.inputs["input_ids"])
    return {name: torch.cat(parts) for name, parts in found.items()}


def ratios(tokens, count):
    """What the first components explain, by the definition."""
    centred = tokens - tokens.mean(0)
    squares = torch.linalg.svdvals(centred).square()
    return (squares / squares.sum())[:count].tolist()


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_ratios_are_those_of_all_inputs_at_once(tiny, linears, sequence, name):
    """Up to what an incremental SVD loses with the components that it does not keep."""
    model = tiny(name)
    names = [n for n in linears(model) if "experts" not in n]
    samples = [sequence(40, seed=i) for i in range(20)]
    found = measure_explained_variance(model, names, samples, 12)
    assert list(found.ratios) == names
    expected = inputs_of(model, names, samples)
    for module, values in found.ratios.items():
        wanted = ratios(expected[module], 12)
        assert list(values) == sorted(values, reverse=True)
        assert values[:4] == pytest.approx(wanted[:4], rel=0.05)
        assert sum(values) == pytest.approx(sum(wanted), rel=0.1)
        assert sum(values) <= sum(wanted) * (1 + 1e-6)


def test_one_batch_of_tokens_is_exact(tiny, linears, sequence):
    model, samples = tiny("llama"), [sequence(30), sequence(25, seed=1)]
    names = linears(model)
    found = measure_explained_variance(model, names, samples, 30)
    for module, tokens in inputs_of(model, names, samples).items():
        assert found.ratios[module] == pytest.approx(ratios(tokens, 30), rel=1e-3, abs=1e-6)


def test_padding_does_not_count(tiny, linears, sequence):
    model = tiny("llama")
    plain = [sequence(40, seed=i) for i in range(4)]
    padded = []
    for i, sample in enumerate(plain):
        ids = sample.inputs["input_ids"]
        mask = torch.ones(1, 50, dtype=torch.long)
        pad = torch.full((1, 10), 7)
        mask[:, 40:] = 0
        if i % 2:
            mask = mask.flip(1)
        row = torch.cat([pad, ids] if i % 2 else [ids, pad], 1)
        padded.append(Sample("data", {"input_ids": row, "attention_mask": mask}))
    names = linears(model)
    found = [measure_explained_variance(model, names, samples, 8) for samples in (plain, padded)]
    for module in names:
        assert found[1].ratios[module] == pytest.approx(found[0].ratios[module], rel=1e-4)


def test_labels_do_not_count(tiny, linears, sequence):
    model, names = tiny("llama"), ["model.layers.1.mlp.down_proj"]
    samples = [sequence(40, seed=i) for i in range(3)]
    bare = [Sample("data", {"input_ids": s.inputs["input_ids"]}) for s in samples]
    masked = [
        Sample("data", s.inputs | {"labels": torch.full_like(s.inputs["labels"], -100)})
        for s in samples
    ]
    found = [measure_explained_variance(model, names, rows, 8) for rows in (samples, bare, masked)]
    assert found[0] == found[1] == found[2]


def test_layers_with_one_input_share_one_svd(tiny, sequence, monkeypatch):
    made = []
    start = Components.__init__
    monkeypatch.setattr(
        Components, "__init__", lambda self, *args: (made.append(args), start(self, *args))[1]
    )
    model = tiny("llama")
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    kinds += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    names = [f"model.layers.0.{kind}" for kind in kinds]
    found = measure_explained_variance(model, names, [sequence(40)], 8)
    assert len(made) == 4
    alone = measure_explained_variance(model, names[1:2], [sequence(40)], 8)
    assert found.ratios[names[0]] == found.ratios[names[1]] == alone.ratios[names[1]]
    assert found.ratios[names[0]] != found.ratios[names[3]]


def test_what_is_written_into_between_two_calls_is_another_input(toy, sequence):
    def body(layers, x):
        hidden = x.clone()
        first = layers[0](hidden)
        hidden.mul_(torch.linspace(0, 1, 8))
        return first + layers[1](hidden)

    found = measure_explained_variance(toy(body), ["layers.0", "layers.1"], [sequence(40)], 4)
    assert found.ratios["layers.0"] != found.ratios["layers.1"]


def test_what_is_written_into_later_was_as_it_was(toy, sequence):
    def body(layers, x):
        hidden = layers[0](x)
        x.zero_()
        return hidden

    plain = toy(lambda layers, x: layers[0](x))
    samples = [sequence(20, seed=i) for i in range(3)]
    found = measure_explained_variance(toy(body), ["layers.0"], samples, 4)
    assert found == measure_explained_variance(plain, ["layers.0"], samples, 4)


def test_halves_are_every_second_sample_of_a_task(tiny, sequence):
    model, names = tiny("llama"), ["model.layers.0.self_attn.o_proj", "model.layers.1.mlp.up_proj"]
    samples = [sequence(30, seed=i, task="ab"[i % 3 == 0]) for i in range(9)]
    found = measure_explained_variance(model, names, samples, 8, halves=True)
    of_task = {task: [s for s in samples if s.task == task] for task in "ab"}
    for which in (0, 1):
        half = [s for s in samples if s in of_task[s.task][which::2]]
        alone = measure_explained_variance(model, names, half, 8)
        assert found.half(which).ratios == alone.ratios
    assert found.ratios == measure_explained_variance(model, names, samples, 8).ratios
    with pytest.raises(ValueError, match="too few tokens"):
        measure_explained_variance(model, names, samples[:1], 8, halves=True).half(1)
    with pytest.raises(ValueError, match="not measured"):
        measure_explained_variance(model, names, samples, 8).half(0)


def test_a_layer_with_few_features_has_as_many_components(toy, sequence):
    model = toy(lambda layers, x: layers[0](x))
    found = measure_explained_variance(model, ["layers.0"], [sequence(30)], 12)
    assert len(found.ratios["layers.0"]) == 8
    assert sum(found.ratios["layers.0"]) == pytest.approx(1, abs=1e-6)
    assert found.by_expert(3)["layers.0"][2:] == (sum(found.ratios["layers.0"][6:]), 0.0)


def test_experts_are_ranks_components_each():
    found = ExplainedVariance(6, {"x": (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)})
    assert found.by_expert(2)["x"] == pytest.approx((0.7, 0.15, 0.03))
    assert found.by_expert(1)["x"] == found.ratios["x"]


def test_inputs_that_do_not_vary_explain_nothing(toy, sequence):
    model = toy(lambda layers, x: layers[1](layers[0](x * 0)))
    found = measure_explained_variance(model, ["layers.0"], [sequence(30)], 4)
    assert found.ratios["layers.0"] == (0.0,) * 4


def test_a_layer_that_no_sample_calls_is_told(toy, sequence):
    model = toy(lambda layers, x: layers[0](x))
    with pytest.warns(UserWarning, match=r"No sample calls 1 of the 2 .* \(layers.1\)"):
        found = measure_explained_variance(
            model, ["layers.0", "layers.1"], [sequence(30)], 4, halves=True
        )
    assert found.ratios["layers.1"] == (0.0,) * 4
    assert found.halves == (
        {name: found.ratios[name] for name in ("layers.0", "layers.1")},
        None,
    )


def test_nothing_is_left_behind_also_after_an_error(tiny, linears, sequence):
    model = tiny("llama")
    model.gradient_checkpointing_enable()
    names = linears(model)
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    samples = [sequence(40)]
    measure_explained_variance(model, names, samples, 8)
    with pytest.raises(ValueError, match="too few"):
        measure_explained_variance(model, names, samples, 60)
    assert model.training and model.model.layers[0].training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(random, torch.get_rng_state())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_components_are_not_rounded_with_the_activations(tiny, sequence, dtype):
    """Under autocast layers compute in half precision; the SVD goes on in full."""
    model, names = tiny("llama"), ["model.layers.1.self_attn.o_proj"]
    samples = [sequence(40, seed=i) for i in range(20)]
    whole = measure_explained_variance(model, names, samples, 8)
    half = measure_explained_variance(model, names, samples, 8, autocast=dtype)
    assert half.ratios[names[0]] == pytest.approx(whole.ratios[names[0]], rel=0.05)
    assert sum(half.ratios[names[0]]) != sum(whole.ratios[names[0]])


def test_the_output_layer_gets_every_token_where_it_is_a_target(tiny, sequence):
    model, samples = tiny("llama"), [sequence(40)]
    found = measure_explained_variance(model, ["lm_head"], samples, 8)
    expected = inputs_of(model, ["lm_head"], samples)
    assert len(expected["lm_head"]) == 40
    assert found.ratios["lm_head"] == pytest.approx(ratios(expected["lm_head"], 8), rel=1e-3)


def test_progress_counts_samples(tiny, sequence):
    done = []
    names = ["model.layers.0.mlp.up_proj"]
    measure_explained_variance(tiny("llama"), names, [sequence(9)] * 3, 4, progress=done.append)
    assert done == [1, 2, 3]


class TestRefusals:
    """Bad input is named, with what to do."""

    def test_no_samples_no_module_no_components(self, toy, sequence):
        model = toy(lambda layers, x: layers[0](x))
        with pytest.raises(ValueError, match="no samples"):
            measure_explained_variance(model, ["layers.0"], [], 4)
        with pytest.raises(ValueError, match="no module named 'layers.7'"):
            measure_explained_variance(model, ["layers.7"], [sequence(9)], 4)
        with pytest.raises(ValueError, match="components is 0"):
            measure_explained_variance(model, ["layers.0"], [sequence(9)], 0)

    def test_fewer_tokens_than_components(self, tiny, linears, sequence):
        model = tiny("llama")
        with pytest.raises(ValueError, match="gets 20 tokens of the samples, too few to find 40 "):
            measure_explained_variance(model, linears(model), [sequence(20)], 40)

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            (nn.LayerNorm(8), r"layers.0 \(LayerNorm\) is not a linear layer"),
            (nn.Embedding(48, 8), r"layers.0 \(Embedding\) is not called like a linear layer"),
        ],
    )
    def test_what_is_not_linear(self, toy, sequence, layer, message):
        def body(layers, x):
            return layers[0](torch.arange(x.shape[1])[None] if layers[0].weight.ndim == 2 else x)

        model = toy(body)
        model.layers[0] = layer
        with pytest.raises(ValueError, match=message):
            measure_explained_variance(model, ["layers.0"], [sequence(6)], 2)

    def test_inputs_that_are_not_finite(self, toy, sequence):
        model = toy(lambda layers, x: layers[0](x / (x.shape[1] != 7)))
        samples = [sequence(6), sequence(7, task="sums")]
        with pytest.raises(ValueError, match=r"layers.0 is not finite on sample 2 of 2 \(task 'su"):
            measure_explained_variance(model, ["layers.0"], samples, 2)

    def test_samples_beyond_the_models_positions(self, tiny, linears, sequence):
        model = tiny("gpt2")
        with pytest.raises(ValueError, match="which has 70 tokens: its config allows for 64"):
            measure_explained_variance(model, linears(model), [sequence(70)], 4)

    def test_layers_that_share_their_input_on_some_samples(self, toy, sequence):
        def body(layers, x):
            return layers[0](x) + layers[1](x if x.shape[1] > 8 else x + 1)

        names = ["layers.0", "layers.1"]
        with pytest.raises(NotImplementedError, match="layers.1 is given the input of layers.0 on"):
            measure_explained_variance(toy(body), names, [sequence(9), sequence(6)], 2)

    def test_layers_that_are_called_together_on_some_samples(self, toy, sequence):
        def body(layers, x):
            return layers[0](x) + (layers[1](x) if x.shape[1] > 8 else 0)

        names = ["layers.0", "layers.1"]
        with pytest.raises(NotImplementedError, match="layers.1 is given the input of layers.0 on"):
            measure_explained_variance(toy(body), names, [sequence(9), sequence(6)], 2)


def test_the_last_tokens_count_however_few():
    generator = torch.Generator().manual_seed(0)
    rows = FEWEST_TOKENS + 3
    tokens = torch.randn(rows, 40, generator=generator) * torch.linspace(0.1, 3, 40)
    tokens[-3:] *= 40
    found = Components(8, 40)
    found.add(tokens[:FEWEST_TOKENS])
    found.add(tokens[FEWEST_TOKENS:])
    assert found.ratios() == pytest.approx(ratios(tokens.double(), 8), rel=0.05)
    assert found.ratios()[0] > 2 * ratios(tokens[:FEWEST_TOKENS].double(), 8)[0]


def test_nothing_warns(tiny, linears, sequence):
    model = tiny("llama")
    model.gradient_checkpointing_enable()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure_explained_variance(model, linears(model), [sequence(40)], 8)
