"""One accumulated step of the HF Trainer on two gloo ranks; rank 0 saves the gradients."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import LlamaForCausalLM, Trainer, TrainingArguments  # noqa: E402

from helpers.balancing import CatchGradients, Rows, adapted  # noqa: E402

folder = Path(sys.argv[1])
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
    train_dataset=Rows(torch.load(folder / "rows.pt")),
    callbacks=[catch],
)
# Batches in the order that accelerate shards them: rank r takes every second batch.
trainer._get_train_sampler = lambda *args: [0, 2, 1, 3, 4, 6, 5, 7]
trainer.train()
if trainer.args.process_index == 0:
    gradients = {name.removeprefix("module."): g for name, g in catch.gradients.items()}
    torch.save(gradients, folder / "gradients.pt")
