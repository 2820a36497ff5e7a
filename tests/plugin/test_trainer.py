"""The trainer's side of the load-balancing loss, in the real HF Trainer."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from axolotl_alphalora.adapter import find_balancer
from axolotl_alphalora.plugin.trainer import AlphaLoraCallback
from balancing import (
    CatchGradients,
    Rows,
    adapted,
    assert_same,
    reference_gradients,
    stack,
    uneven_rows,
)


class OwnLoss(Trainer):
    """A trainer that takes logits and makes the loss itself, as those of TRL do."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean cross-entropy of the micro-batch."""
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )


def trainer_for(cls, model, rows, tmp_path, accumulation, **options):
    trainer = cls(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=len(rows) // accumulation,
            gradient_accumulation_steps=accumulation,
            use_cpu=True,
            report_to="none",
            max_grad_norm=0.0,
            logging_steps=1,
            **options,
        ),
        train_dataset=Rows(rows),
        eval_dataset=Rows(rows[:2]),
    )
    trainer._get_train_sampler = lambda *args: range(len(rows))
    trainer.add_callback(AlphaLoraCallback(trainer, find_balancer(model), fresh=True))
    return trainer


def test_a_trainer_that_computes_its_own_loss_gets_the_loss_at_the_same_scale(tiny_llama, tmp_path):
    rows, catch = uneven_rows(), CatchGradients()
    trainer = trainer_for(OwnLoss, adapted(tiny_llama), rows, tmp_path, 2, max_steps=1)
    trainer.model_accepts_loss_kwargs = False
    trainer.add_callback(catch)
    trainer.train()
    halves = [stack(rows[:4]), stack(rows[4:])]
    want = [reference_gradients(tiny_llama, [half], [1.0], loss_scale=0.5) for half in halves]
    assert_same(catch.gradients, {name: want[0][name] + want[1][name] for name in want[0]})


@pytest.mark.works("Trainers", "fp16's loss scaling", "with a scaler on the CPU")
def test_the_loss_scale_of_fp16_is_followed_by_trainers_that_compute_their_own_loss(
    tiny_llama, tmp_path
):
    rows, catch = uneven_rows(), CatchGradients()
    trainer = trainer_for(OwnLoss, adapted(tiny_llama), rows, tmp_path, 1, max_steps=1)
    trainer.model_accepts_loss_kwargs = False
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    trainer.add_callback(catch)
    trainer.train()
    assert_same(
        catch.gradients, reference_gradients(tiny_llama, [stack(rows)], [1.0], loss_scale=256.0)
    )


@pytest.mark.works("Robustness", "NaN in a router is reported with the module's name")
def test_a_router_that_gives_nan_is_named(tiny_llama, tmp_path, caplog):
    model = adapted(tiny_llama)
    name = "model.layers.1.self_attn.v_proj"
    broken = model.get_base_model().get_submodule(name)
    broken.alphalora_router["default"].data[0, 0] = float("nan")
    trainer = trainer_for(Trainer, model, uneven_rows(), tmp_path, 2, max_steps=1)
    with caplog.at_level("ERROR", logger="axolotl_alphalora.plugin.trainer"):
        trainer.train()
    assert f"routers gave NaN or infinity in step 1: {name}.default is the first of" in caplog.text


def test_finite_routers_are_not_reported(tiny_llama, tmp_path, caplog):
    trainer = trainer_for(Trainer, adapted(tiny_llama), uneven_rows(), tmp_path, 2, max_steps=1)
    trainer.train()
    assert "NaN" not in caplog.text


def test_the_balance_is_logged_for_training_and_evaluation_apart(tiny_llama, tmp_path):
    trainer = trainer_for(
        Trainer,
        adapted(tiny_llama),
        uneven_rows(),
        tmp_path,
        2,
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
    )
    trainer.train()
    history = trainer.state.log_history
    training = [row for row in history if "loss" in row]
    evaluation = [row for row in history if "eval_loss" in row]
    assert len(training) == len(evaluation) == 2
    assert all(row["alphalora/aux_loss"] >= 2 - 1e-5 for row in training)
    assert all(row["eval_alphalora/aux_loss"] >= 2 - 1e-5 for row in evaluation)
    assert training[0]["alphalora/aux_loss"] != evaluation[0]["eval_alphalora/aux_loss"]
    assert "eval_alphalora/aux_loss" in trainer.evaluate()
