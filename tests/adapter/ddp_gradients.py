"""One accumulated step of the HF Trainer on two gloo ranks; rank 0 saves the gradients."""

import importlib.util
import sys
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
spec = importlib.util.spec_from_file_location("balance_tests", here / "test_balance.py")
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)

folder = Path(sys.argv[1])
rows = torch.load(folder / "rows.pt")
model = tests.adapted(LlamaForCausalLM.from_pretrained(folder / "base"))
catch = tests._Catch()
trainer = tests.Trainer(
    model=model,
    args=tests.TrainingArguments(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=1,
        use_cpu=True,
        report_to="none",
        max_grad_norm=0.0,
        ddp_find_unused_parameters=False,
    ),
    train_dataset=tests._Rows(rows),
    callbacks=[catch],
)
rank = trainer.args.process_index
# Batches in the order that accelerate shards them: rank r takes every second batch.
order = [0, 2, 1, 3, 4, 6, 5, 7]
trainer._get_train_sampler = lambda *a: order
trainer.train()
gradients = {name.removeprefix("module."): g for name, g in catch.gradients.items()}
if rank == 0:
    torch.save(gradients, folder / "gradients.pt")
