"""The load-balancing loss in the HF Trainer: accumulated, and on two ranks."""

import pytest
import torch
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

from helpers.balancing import (
    CHECKPOINTING,
    CatchGradients,
    Rows,
    adapted,
    assert_same,
    reference_gradients,
    stack,
    uneven_rows,
)
from helpers.worlds import in_a_world


def train_one_step(model, rows, tmp_path, accumulation, mode="none"):
    catch = CatchGradients()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=len(rows) // accumulation,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            use_cpu=True,
            report_to="none",
            max_grad_norm=0.0,
            gradient_checkpointing=CHECKPOINTING[mode] is not None,
            gradient_checkpointing_kwargs=None
            if CHECKPOINTING[mode] is None
            else {"use_reentrant": CHECKPOINTING[mode]},
        ),
        train_dataset=Rows(rows),
        callbacks=[catch],
    )
    trainer._get_train_sampler = lambda *a: torch.utils.data.SequentialSampler(rows)
    trainer.train()
    return catch.gradients


@pytest.mark.parametrize("mode", ["none", "reentrant"])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_accumulation_in_the_real_trainer_gives_the_gradient_of_the_whole_batch(
    tiny_llama, trainer_folder, accumulation, mode
):
    rows = uneven_rows()
    model = adapted(tiny_llama)
    if mode != "none":
        model.enable_input_require_grads()
    got = train_one_step(model, rows, trainer_folder, accumulation, mode)

    # The loss of a batch is not the mean of its parts' losses (f_e and P_e multiply), so the
    # reference too takes each micro-batch's own loss, weighted with its share of the targets.
    size = len(rows) // accumulation
    batches = [stack(rows[i : i + size]) for i in range(0, len(rows), size)]
    targets = [int(b["labels"][:, 1:].ne(-100).sum()) for b in batches]
    weights = [n / sum(targets) for n in targets]
    assert len(set(targets)) == accumulation
    assert_same(got, reference_gradients(tiny_llama, batches, weights))


def one_step_of_a_rank(folder, rows):
    """One accumulated step of the HF Trainer; rank 0 saves the gradients."""
    catch = CatchGradients()
    trainer = Trainer(
        model=adapted(LlamaForCausalLM.from_pretrained(folder / "base")),
        args=TrainingArguments(
            output_dir=str(folder / "out"),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=1,
            use_cpu=True,
            report_to="none",
            max_grad_norm=0.0,
            ddp_find_unused_parameters=False,
        ),
        train_dataset=Rows(rows),
        callbacks=[catch],
    )
    # Batches in the order that accelerate shards them: rank r takes every second batch.
    trainer._get_train_sampler = lambda *args: [0, 2, 1, 3, 4, 6, 5, 7]
    trainer.train()
    assert trainer.args.world_size == 2
    if trainer.args.process_index == 0:
        torch.save(
            {name.removeprefix("module."): g for name, g in catch.gradients.items()},
            folder / "gradients.pt",
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="a process with a GPU cannot be forked")
def test_two_ranks_under_ddp_give_the_gradient_of_the_global_batch(tiny_llama, trainer_folder):
    rows, folder = uneven_rows(), trainer_folder
    tiny_llama.save_pretrained(folder / "base")
    error = folder / "error.txt"
    in_a_world(2, folder / "store", lambda: one_step_of_a_rank(folder, rows), error)
    assert not error.exists(), error.read_text()
    got = torch.load(folder / "gradients.pt")
    batches = [stack(rows[i::2][j : j + 2]) for j in (0, 2) for i in (0, 1)]
    targets = [int(b["labels"][:, 1:].ne(-100).sum()) for b in batches]
    weights = [n / sum(targets) for n in targets]
    assert_same(got, reference_gradients(tiny_llama, batches, weights))
