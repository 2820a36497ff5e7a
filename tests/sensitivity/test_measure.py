import warnings
import weakref

import pytest
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from axolotl_alphalora.samples import Sample
from axolotl_alphalora.sensitivity import Sensitivity, measure_sensitivity
from axolotl_alphalora.sensitivity import capture as paths

CHECKPOINTING = ["off", "reentrant", "not reentrant", "for the measure"]


def _switch(model, checkpointing):
    if checkpointing in ("reentrant", "not reentrant"):
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
        # The hooks of transformers that let gradients through frozen embeddings would help.
        model.disable_input_require_grads()
    return {"checkpointing": checkpointing == "for the measure"}


def _loss(sample):
    return lambda model: model(**sample.inputs, use_cache=False).loss


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_squares_are_those_of_autograd(tiny, linears, sequence, by_autograd, name, checkpointing):
    """Also Conv1D; 9 and 40 tokens take either way to the norm."""
    model = tiny(name)
    names = linears(model)
    samples = [sequence(9), sequence(40, seed=1, task="other")]
    expected = [by_autograd(model, names, _loss(sample)) for sample in samples]
    found = measure_sensitivity(model, names, samples, **_switch(model, checkpointing))
    assert found.tasks == ("data", "other")
    assert list(found.squares) == names
    for index, squares in enumerate(expected):
        assert min(squares.values()) > 0
        measured = {module: values[index] for module, values in found.squares.items()}
        assert measured == pytest.approx(squares, rel=1e-4, abs=0)


@pytest.mark.parametrize("path", ["_from_grams", "_from_product"])
def test_either_path_gives_autograds_squares(
    tiny, linears, sequence, by_autograd, monkeypatch, path
):
    model, sample = tiny("llama"), sequence(24)
    names = linears(model)
    expected = by_autograd(model, names, _loss(sample))
    rows = {"_from_grams": (32,), "_from_product": ()}[path]
    chosen = getattr(paths, path)
    for other in ("_from_grams", "_from_product"):
        monkeypatch.setattr(paths, other, lambda x, gradient, *_: chosen(x, gradient, *rows))
    found = measure_sensitivity(model, names, [sample])
    assert {module: values[0] for module, values in found.squares.items()} == pytest.approx(
        expected, rel=1e-4, abs=0
    )


@pytest.mark.parametrize("left", [True, False])
def test_rows_of_a_padded_batch_are_those_of_autograd_with_the_padding(
    tiny, linears, sequence, by_autograd, left
):
    model = tiny("llama")
    names = linears(model)
    rows = [sequence(12).inputs, sequence(30, seed=1).inputs]
    batch = {key: [] for key in ("input_ids", "labels", "attention_mask")}
    for row in rows:
        row = {**row, "attention_mask": torch.ones_like(row["labels"])}
        for key, fill in (("input_ids", 0), ("labels", -100), ("attention_mask", 0)):
            missing = 30 - row[key].shape[1]
            sides = (missing, 0) if left else (0, missing)
            batch[key].append(functional.pad(row[key], sides, value=fill))
    padded = {key: torch.cat(values) for key, values in batch.items()}
    found = measure_sensitivity(model, names, [Sample("data", row) for row in rows])
    for index in range(2):
        alone = {key: value[index : index + 1] for key, value in padded.items()}
        expected = by_autograd(model, names, lambda m, row=alone: m(**row, use_cache=False).loss)
        measured = {module: values[index] for module, values in found.squares.items()}
        assert measured == pytest.approx(expected, rel=1e-4, abs=0)


def test_sequences_of_a_packed_row_are_those_of_autograd_on_the_row(
    tiny, linears, sequence, by_autograd
):
    model = tiny("llama")
    names = linears(model)
    sizes = (10, 25, 7)
    rows = [sequence(size, seed=size).inputs for size in sizes]
    packed = {key: torch.cat([row[key] for row in rows], dim=1) for key in rows[0]}
    positions = torch.cat([torch.arange(size) for size in sizes])[None]
    found = measure_sensitivity(model, names, [Sample("data", row) for row in rows])

    start = 0
    for index, size in enumerate(sizes):
        piece = slice(start, start + size)

        def loss(model, piece=piece):
            out = model(input_ids=packed["input_ids"], position_ids=positions, use_cache=False)
            logits, labels = out.logits[0, piece], packed["labels"][0, piece]
            return functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100)

        expected = by_autograd(model, names, loss)
        measured = {module: values[index] for module, values in found.squares.items()}
        assert measured == pytest.approx(expected, rel=1e-4, abs=0)
        start += size


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_layers_that_do_not_read_the_embedding_are_reached(sequence, by_autograd, checkpointing):
    """A vision tower: none of its inputs requires a gradient."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = Llava(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                **sizes, num_attention_heads=2, image_size=16, patch_size=8
            ),
            text_config=LlamaConfig(**sizes, num_attention_heads=2, vocab_size=48),
            image_token_index=47,
            image_seq_length=4,
        )
    ).train()
    ids = sequence(12).inputs["input_ids"] % 47
    ids[:, :4] = 47
    pixels = torch.randn(1, 3, 16, 16)
    sample = Sample("data", {"input_ids": ids, "labels": ids, "pixel_values": pixels})
    names = [name for name, module in model.named_modules() if name.endswith(("fc1", "up_proj"))]
    assert len(names) == 4
    expected = by_autograd(model, names, _loss(sample))
    found = measure_sensitivity(model, names, [sample], **_switch(model, checkpointing))
    assert {module: values[0] for module, values in found.squares.items()} == pytest.approx(
        expected, rel=1e-4, abs=0
    )
    # The tower's second layer is not read: the default is the last but one.
    assert sorted(value == 0 for value in expected.values()) == [False, False, False, True]


def test_layers_in_a_models_own_reentrant_checkpoint_are_reached(toy, sequence, by_autograd):
    def body(layers, x):
        return layers[1](checkpoint(layers[0], x, use_reentrant=True))

    model, sample = toy(body), sequence(9)
    names = ["layers.0", "layers.1"]
    plain = toy(lambda layers, x: layers[1](layers[0](x)))
    expected = by_autograd(plain, names, lambda m: m(**sample.inputs).loss)
    found = measure_sensitivity(model, names, [sample])
    assert {module: values[0] for module, values in found.squares.items()} == pytest.approx(
        expected, rel=1e-4, abs=0
    )


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_checkpointing_holds_no_inputs(tiny, sequence, checkpointing):
    model = tiny("llama")
    layer = model.get_submodule("model.layers.0.mlp.down_proj")
    held, calls, alive = [], [], []
    layer.register_forward_pre_hook(lambda _, args: held.append(weakref.ref(args[0])))
    layer.register_forward_pre_hook(lambda module, _: calls.append(module))
    model.lm_head.register_forward_pre_hook(lambda *_: alive.append(held[-1]() is not None))
    names = ["model.layers.0.mlp.down_proj"]
    samples = [sequence(9), sequence(12)]
    measure_sensitivity(model, names, samples, **_switch(model, checkpointing))
    without = checkpointing == "off"
    assert alive == [without, without]
    assert len(calls) == (2 if without else 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_dtype(tiny, linears, sequence, by_autograd, dtype):
    """Within what the rounding of weight gradients to that dtype moves autograd's own squares."""
    model, sample = tiny("llama"), sequence(20)
    names = linears(model)
    seen = []
    model.model.layers[0].self_attn.q_proj.register_forward_hook(
        lambda module, args, output: seen.append(output.dtype)
    )

    def loss(model):
        with torch.autocast("cpu", dtype=dtype):
            return model(**sample.inputs, use_cache=False).loss

    expected = by_autograd(model, names, loss)
    found = measure_sensitivity(model, names, [sample], autocast=dtype)
    assert set(seen) == {dtype}
    assert {module: values[0] for module, values in found.squares.items()} == pytest.approx(
        expected, rel=0.02, abs=0
    )


@pytest.mark.parametrize("size", [1e-7, 1e3])
def test_float16_gradients_neither_flush_to_zero_nor_overflow(toy, sequence, by_autograd, size):
    """Unscaled, the small gradients are below float16's least number."""
    model = toy(lambda layers, x: layers[1](layers[0](x).relu()))
    model.scale = size
    names, sample = ["layers.0", "layers.1"], sequence(12)
    expected = by_autograd(model, names, lambda m: m(**sample.inputs).loss)
    found = measure_sensitivity(model, names, [sample], autocast=torch.float16)
    assert {module: values[0] for module, values in found.squares.items()} == pytest.approx(
        expected, rel=0.02, abs=0
    )


def test_small_float16_gradients_are_kept_where_large_ones_overflow(toy, sequence, by_autograd):
    model = toy(lambda layers, x: layers[0](x) + layers[1](x) * 1e-8)
    model.scale = 50.0
    names, sample = ["layers.0", "layers.1"], sequence(12)
    expected = by_autograd(model, names, lambda m: m(**sample.inputs).loss)
    found = measure_sensitivity(model, names, [sample], autocast=torch.float16)
    assert {module: values[0] for module, values in found.squares.items()} == pytest.approx(
        expected, rel=0.02, abs=0
    )


def test_an_expert_that_gets_no_token_has_zero(toy, sequence):
    model = toy(lambda layers, x: layers[int(x.shape[1] > 10)](x))
    names = ["layers.1", "layers.0"]
    samples = [sequence(9), sequence(12)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure_sensitivity(model, names, samples)
    assert list(found.squares) == names
    assert [value > 0 for value in found.squares["layers.0"]] == [True, False]
    assert [value > 0 for value in found.squares["layers.1"]] == [False, True]


def test_a_weight_that_is_used_without_calling_its_layer_is_told(sequence):
    """Mamba's scan reads `dt_proj.weight` itself, on a processor too."""
    from transformers import FalconMambaConfig, FalconMambaForCausalLM

    model = FalconMambaForCausalLM(
        FalconMambaConfig(vocab_size=48, hidden_size=16, state_size=4, num_hidden_layers=4)
    )
    sides = ("dt_proj", "out_proj")
    names = [name for name, _ in model.named_modules() if name.endswith(sides)]
    with pytest.warns(UserWarning, match="No sample calls") as caught:
        found = measure_sensitivity(model, names, [sequence(6), sequence(7)])
    (message,) = [str(w.message) for w in caught if "No sample calls" in str(w.message)]
    first = ", ".join(f"backbone.layers.{i}.mixer.dt_proj" for i in range(3))
    assert f"4 of the 8 target modules ({first}, ...)" in message
    assert "`lora_exclude_modules`" in message
    for name, values in found.squares.items():
        assert all((value == 0) == name.endswith("dt_proj") for value in values)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_layers_that_run_are_called_also_in_a_checkpoint(tiny, linears, sequence, checkpointing):
    model = tiny("llama")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="No sample calls")
        measure_sensitivity(model, linears(model), [sequence(9)], **_switch(model, checkpointing))


def test_rotary_positions_go_on_after_the_configs_limit(tiny, linears, sequence):
    model = tiny("llama")
    model.config.max_position_embeddings = 8
    found = measure_sensitivity(model, linears(model), [sequence(12)])
    assert all(values[0] > 0 for values in found.squares.values())


def test_what_layers_return_may_be_written_into(toy, sequence, by_autograd):
    def body(layers, x):
        x += 1
        hidden = layers[0](x)
        hidden[:, 0] = 0
        return layers[1](hidden.mul_(2))

    model, sample = toy(body), sequence(9)
    names = ["layers.0", "layers.1"]
    expected = by_autograd(model, names, lambda m: m(**sample.inputs).loss)
    found = measure_sensitivity(model, names, [sample])
    assert {module: values[0] for module, values in found.squares.items()} == pytest.approx(
        expected, rel=1e-4, abs=0
    )


def test_progress_counts_samples(tiny, sequence):
    done = []
    names = ["model.layers.0.mlp.up_proj"]
    measure_sensitivity(tiny("llama"), names, [sequence(6)] * 3, progress=done.append)
    assert done == [1, 2, 3]


def test_sums_by_task_and_halves():
    found = Sensitivity(
        ("b", "a", "b", "a", "b"), {"y": (1.0, 2.0, 4.0, 8.0, 16.0), "x": (1.0, 0.0, 0.0, 0.0, 1.0)}
    )
    assert found.by_task() == {"b": {"y": 21.0, "x": 2.0}, "a": {"y": 10.0, "x": 0.0}}
    assert [list(found.by_task()), list(found.by_task()["a"])] == [["b", "a"], ["y", "x"]]
    first, second = found.half(0), found.half(1)
    assert first == Sensitivity(("b", "a", "b"), {"y": (1.0, 2.0, 16.0), "x": (1.0, 0.0, 1.0)})
    assert second == Sensitivity(("b", "a"), {"y": (4.0, 8.0), "x": (0.0, 0.0)})
    with pytest.raises(ValueError, match="'a' has one sample only"):
        first.half(0)
