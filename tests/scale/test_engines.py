"""Two ranks train as one process does, save the whole adapter and resume, whatever the engine."""

import pytest
import torch
from accelerate.utils import merge_fsdp_weights
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from axolotl_alphalora.plugin.checkpoints import find_flaw
from axolotl_alphalora.plugin.saved import read_saved
from helpers.balancing import (
    COEFFICIENT,
    adapted,
    assert_same,
    gradients,
    reference_gradients,
    router_inputs,
    stack,
    uneven_rows,
)
from scale.starting import CUT

ROWS = uneven_rows(32, 40)
BASES = {
    "nf4": BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    ),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
}
FIRST_STEP = [stack(ROWS[start : start + 2]) for start in range(0, 8, 2)]


def shares(batches):
    targets = [int(batch["labels"][:, 1:].ne(-100).sum()) for batch in batches]
    return [count / sum(targets) for count in targets]


def base(runs, **options):
    return LlamaForCausalLM.from_pretrained(runs.base, **options)


@pytest.fixture(scope="module")
def whole_gradient(runs):
    return reference_gradients(base(runs), FIRST_STEP, shares(FIRST_STEP))


def check_training(runs, name, first_gradient, like="single"):
    """The first step's gradient is the reference's, and all steps are those of one process."""
    assert_same(runs.gradients(name), first_gradient)
    check_steps(runs, name, like)
    assert runs.report(name)["steps"] == 4


def check_sharded(runs, name):
    """Each of the two ranks keeps about half of the adapter (an odd row is nobody's half)."""
    assert runs.report(name)["held"] < 0.55 * runs.report("ddp")["held"]


def check_steps(runs, name, like="single"):
    assert runs.report(name)["losses"] == pytest.approx(runs.report(like)["losses"], abs=1e-5)
    routers, want = runs.report(name)["routers"], runs.report(like)["routers"]
    assert len(routers) == len(want)
    for got, single in zip(routers, want, strict=True):
        assert got == pytest.approx(single, abs=1e-4)
    check_weights(runs.adapter(name), runs.adapter(like))


def check_weights(got, want):
    assert got.keys() == want.keys()
    for key in want:
        torch.testing.assert_close(
            got[key], want[key], rtol=0, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}"
        )


def check_saved(runs, name, saved="final", shape=None, **options):
    """Every A, B and router is in the file, and plain PEFT gets the run's own model from it."""
    got = {key: weight.shape for key, weight in runs.adapter(name, saved).items()}
    want = get_peft_model_state_dict(adapted(base(runs), **shape or {}))
    assert got == {key: weight.shape for key, weight in want.items()}
    model = PeftModel.from_pretrained(base(runs, **options), runs.of(name) / saved).eval()
    batch = stack(ROWS[:2])
    del batch["labels"]
    with torch.no_grad():
        logits = model(**batch).logits
    torch.testing.assert_close(logits, runs.logits(name), rtol=0, atol=1e-5)


def test_one_process_trains_on_the_reference_gradient(runs, whole_gradient):
    check_training(runs, "single", whole_gradient)
    losses = runs.report("single")["losses"]
    start = runs.folder / "start"
    moved = runs.adapter("single", "checkpoint-4")
    for key, weight in runs.adapter("single", str(start)).items():
        assert not torch.equal(weight, moved[key]), key
    assert len(set(losses)) == 4


@pytest.mark.works("Scale-out", "DDP")
def test_ddp(runs, whole_gradient):
    check_training(runs, "ddp", whole_gradient)
    check_saved(runs, "ddp")
    check_saved(runs, "ddp", "checkpoint-4")


@pytest.mark.works("Scale-out", "DDP")
def test_ddp_where_each_rank_takes_the_mean_over_its_own_targets(runs):
    # As Axolotl sets it (average_tokens_across_devices), so the two ranks count alike.
    parts = [FIRST_STEP[rank::2] for rank in (0, 1)]
    ranks = [reference_gradients(base(runs), part, shares(part)) for part in parts]
    assert_same(
        runs.gradients("ddp-local-mean"),
        {key: (ranks[0][key] + ranks[1][key]) / 2 for key in ranks[0]},
    )


@pytest.mark.works("Scale-out", "DDP")
def test_ddp_where_the_trainer_computes_the_loss_by_the_share_of_each_rank(runs, whole_gradient):
    assert_same(runs.gradients("ddp-own-loss"), whole_gradient)


def globally_balanced_gradient(model):
    """As `reference_gradients`, each expert's share of the tokens counted over both ranks."""
    model = adapted(model, coefficient=0.0).train()
    counted = torch.tensor(sum(int(b["labels"][:, 1:].ne(-100).sum()) for b in FIRST_STEP))
    total = 0.0
    for ranks, weights in ((FIRST_STEP[i : i + 2], shares(FIRST_STEP)[i : i + 2]) for i in (0, 2)):
        seen = []
        for batch in ranks:
            with router_inputs(model) as layers:
                total = total + model(**batch, num_items_in_batch=counted).loss
            seen.append([routing(layer, x, batch["attention_mask"]) for layer, x in layers])
        for slots, *means in zip(
            (first[1] + second[1] for first, second in zip(*seen, strict=True)), *seen, strict=True
        ):
            for weight, (share, _, mean) in zip(weights, means, strict=True):
                aux = len(slots) * (slots / slots.sum() * mean).sum()
                total = total + weight * COEFFICIENT * share * aux
    total.backward()
    return gradients(model)


def routing(layer, x, mask):
    """The router's share of its block, the slots of each expert and its mean probability."""
    tokens = x[mask.bool()]
    probabilities = torch.softmax(tokens @ layer.alphalora_router["default"].T, dim=-1)
    chosen = probabilities.topk(layer.top_k["default"]).indices.flatten()
    slots = chosen.bincount(minlength=probabilities.shape[-1])
    return layer.block_share["default"], slots, probabilities.mean(0)


@pytest.mark.works("Scale-out", "global-batch load balancing", "DDP, FSDP2")
@pytest.mark.parametrize("run", ["ddp-balanced", "fsdp-balanced"])
def test_experts_are_counted_over_all_ranks(runs, whole_gradient, run):
    want = globally_balanced_gradient(base(runs))
    assert_same(runs.gradients(run), want)
    router = "base_model.model.model.layers.1.mlp.down_proj.alphalora_router.default"
    change = (want[router] - whole_gradient[router]).abs().max()
    assert change > 1e-2 * want[router].abs().max(), "counting over ranks must matter here"


@pytest.mark.works("Scale-out", "DDP, 4-bit base (nf4)")
def test_ddp_on_an_nf4_base(runs):
    check_training(runs, "nf4", runs.gradients("nf4-single"), like="nf4-single")
    plain, quantised = runs.report("ddp")["losses"], runs.report("nf4")["losses"]
    assert abs(plain[0] - quantised[0]) > 1e-4, "the base must be quantised for this test to matter"
    check_saved(runs, "nf4", quantization_config=BASES["nf4"])


def check_sharded_base(runs, name, single, kind):
    """Rank 0 keeps half of the bytes, of the class that bitsandbytes knows them by."""
    (whole,) = runs.report(single)["base"].values()
    held = runs.report(name)["base"]
    assert list(held) == [kind]
    assert held[kind] == whole // 2


@pytest.mark.works("Scale-out", "FSDP2, 4-bit base (nf4), as Axolotl loads, shards and saves it")
@pytest.mark.works("Scale-out", "FSDP2, 8-bit base, as Axolotl loads, shards and saves it")
@pytest.mark.parametrize(("bits", "kind"), [("nf4", "Params4bit"), ("int8", "Int8Params")])
def test_fsdp2_on_a_quantised_base(runs, bits, kind):
    run, single = f"{bits}-fsdp", f"{bits}-single"
    check_training(runs, run, runs.gradients(single), like=single)
    check_sharded(runs, run)
    check_sharded_base(runs, run, single, kind)
    check_saved(runs, run, quantization_config=BASES[bits])


@pytest.mark.works("Scale-out", "FSDP2, 4-bit base, resume from a sharded checkpoint")
def test_a_resumed_run_under_fsdp2_on_an_nf4_base_equals_the_uninterrupted_one(runs):
    sharded = runs.of("nf4-fsdp") / "checkpoint-2"
    assert not (sharded / "adapter_model.safetensors").exists()
    assert find_flaw(sharded) is None
    saved = read_saved("resume_from_checkpoint", str(sharded))  # by which the host's run begins
    assert set(saved["num_experts"].values()) - {0}
    check_steps(runs, "nf4-fsdp-resumed", like="nf4-single")
    assert runs.report("nf4-fsdp-resumed")["steps"] == 2
    check_saved(runs, "nf4-fsdp-resumed", quantization_config=BASES["nf4"])


@pytest.mark.works("Scale-out", "FSDP2, 4-bit base in bf16 (packed weights in bfloat16 or uint8)")
def test_fsdp2_on_an_nf4_base_in_bf16(runs):
    got, want = runs.gradients("nf4-fsdp-bf16"), runs.gradients("nf4-bf16")
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        # FSDP rounds gradients to bf16's 8 bits as it takes their mean, a single process does not.
        assert (got[name] - gradient).norm() <= 2**-7 * gradient.norm(), name
    check_sharded_base(runs, "nf4-fsdp-bf16", "nf4-bf16", "Params4bit")


@pytest.mark.works("Scale-out", "FSDP2, a checkpoint quantised by bitsandbytes (nf4 in uint8)")
def test_packed_in_bytes_and_by_the_checkpoint_the_base_is_the_same(runs):
    one, other = runs.gradients("nf4-fsdp-bf16"), runs.gradients("nf4-fsdp-bf16-bytes")
    assert all(other[name].equal(gradient) for name, gradient in one.items())


@pytest.mark.works("Scale-out", "DeepSpeed ZeRO-3, 4-bit base (nf4)")
def test_zero3_on_an_nf4_base(runs):
    check_training(runs, "nf4-zero3", runs.gradients("nf4-single"), like="nf4-single")
    check_sharded(runs, "nf4-zero3")
    check_sharded_base(runs, "nf4-zero3", "nf4-single", "Tensor")
    check_saved(runs, "nf4-zero3", quantization_config=BASES["nf4"])


@pytest.mark.works("Scale-out", "FSDP2")
@pytest.mark.parametrize("run", ["fsdp", "fsdp-sharded"])
def test_fsdp2(runs, whole_gradient, run):
    check_training(runs, run, whole_gradient)
    check_sharded(runs, run)
    check_saved(runs, run)


def test_a_full_checkpoint_of_fsdp2_is_an_adapter(runs):
    check_saved(runs, "fsdp", "checkpoint-4")


def test_a_sharded_checkpoint_of_fsdp2_merges_into_the_adapter(runs, tmp_path):
    shards = runs.of("fsdp-sharded") / "checkpoint-4" / "pytorch_model_fsdp_0"
    merge_fsdp_weights(str(shards), str(tmp_path))
    check_weights(load_file(tmp_path / "model.safetensors"), runs.adapter("single"))


@pytest.mark.works("Scale-out", "FSDP2, activation checkpointing")
def test_fsdp2_with_recomputed_blocks(runs, whole_gradient):
    assert_same(runs.gradients("fsdp-recomputed"), whole_gradient)
    check_sharded(runs, "fsdp-recomputed")


def test_fsdp2_with_recomputed_blocks_saves_the_whole_adapter(runs):
    check_saved(runs, "fsdp-recomputed")
    check_saved(runs, "fsdp-recomputed", "checkpoint-1")


@pytest.mark.works("Scale-out", "FSDP2 as Axolotl loads, shards and saves it")
def test_fsdp2_of_the_host(runs, whole_gradient):
    check_training(runs, "fsdp-host", whole_gradient)
    check_sharded(runs, "fsdp-host")
    check_saved(runs, "fsdp-host")


@pytest.mark.works("Scale-out", "resume on another number of ranks", "DDP, FSDP2")
@pytest.mark.parametrize(
    ("run", "steps"),
    [
        ("ddp-1-to-2", 2),
        ("ddp-2-to-1", 2),
        ("fsdp-2-to-1", 2),
        ("fsdp-1-to-2", 1),
    ],
)
def test_a_resumed_run_equals_the_uninterrupted_one(runs, run, steps):
    check_steps(runs, run)
    assert runs.report(run)["steps"] == steps
    check_saved(runs, run)


def test_a_resumed_run_under_fsdp2_of_the_host_equals_the_uninterrupted_one(runs):
    check_steps(runs, "fsdp-host-resumed")
    assert runs.report("fsdp-host-resumed")["steps"] == 2
    check_saved(runs, "fsdp-host-resumed")


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(
            "zero1",
            marks=pytest.mark.works("Scale-out", "DeepSpeed ZeRO-1"),
        ),
        pytest.param(
            "zero2",
            marks=pytest.mark.works("Scale-out", "DeepSpeed ZeRO-2"),
        ),
        pytest.param(
            "zero3",
            marks=pytest.mark.works("Scale-out", "DeepSpeed ZeRO-3"),
        ),
    ],
)
def test_deepspeed(runs, whole_gradient, run):
    check_training(runs, run, whole_gradient)
    check_saved(runs, run)
    check_saved(runs, run, "checkpoint-4")


def test_zero3_partitions_the_adapter_too(runs):
    check_sharded(runs, "zero3")


@pytest.mark.works(
    "Scale-out", "`segments`, `router_rank`, `share_a`, `top_k` as a share", "DDP, FSDP2, ZeRO-3"
)
@pytest.mark.parametrize("run", ["cut-ddp", "cut-fsdp", "cut-zero3"])
def test_mixtures_of_any_shape_train_as_in_one_process(runs, run):
    assert_same(runs.gradients(run), runs.gradients("cut-single"))
    check_steps(runs, run, like="cut-single")
    check_saved(runs, run, shape=CUT)
    if run != "cut-ddp":
        assert runs.report(run)["held"] < 0.55 * runs.report("cut-ddp")["held"]


def test_a_resumed_zero3_run_equals_the_uninterrupted_one(runs):
    check_steps(runs, "zero3-resumed")
    assert runs.report("zero3-resumed")["steps"] == 2
    check_saved(runs, "zero3-resumed")
