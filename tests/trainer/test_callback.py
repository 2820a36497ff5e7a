"""The trainer's side of the load-balancing loss, in the real HF Trainer."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from axolotl_alphalora.adapter import find_balancer, find_routers
from axolotl_alphalora.adapter.usage import RouterUsage, UsageMeter, summarise
from axolotl_alphalora.trainer import (
    AlphaLoraCallback,
    CollapseWatch,
    _check_threads,
    _loss_scale,
)
from helpers.balancing import (
    CatchGradients,
    Rows,
    SharedLoss,
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


def trainer_for(cls, model, rows, trainer_folder, accumulation, callback=None, **options):
    trainer = cls(
        model=model,
        args=TrainingArguments(
            output_dir=str(trainer_folder),
            per_device_train_batch_size=len(rows) // accumulation,
            gradient_accumulation_steps=accumulation,
            use_cpu=True,
            **{"report_to": "none", "max_grad_norm": 0.0, "logging_steps": 1} | options,
        ),
        train_dataset=Rows(rows),
        eval_dataset=Rows(rows[:2]),
    )
    trainer._get_train_sampler = lambda *args: range(len(rows))
    trainer.add_callback(AlphaLoraCallback(**(callback or {})))
    return trainer


def test_a_trainer_that_computes_its_own_loss_gets_the_loss_at_the_same_scale(
    tiny_llama, trainer_folder
):
    rows, catch = uneven_rows(), CatchGradients()
    trainer = trainer_for(OwnLoss, adapted(tiny_llama), rows, trainer_folder, 2, max_steps=1)
    trainer.model_accepts_loss_kwargs = False
    trainer.add_callback(catch)
    trainer.train()
    halves = [stack(rows[:4]), stack(rows[4:])]
    want = [reference_gradients(tiny_llama, [half], [1.0], loss_scale=0.5) for half in halves]
    assert_same(catch.gradients, {name: want[0][name] + want[1][name] for name in want[0]})


@pytest.mark.parametrize("loss_scale", [1.0, 256.0])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_a_micro_batch_that_knows_its_share_of_the_step_counts_by_it(
    tiny_llama, trainer_folder, accumulation, loss_scale
):
    rows, catch = uneven_rows(), CatchGradients()
    trainer = trainer_for(
        SharedLoss, adapted(tiny_llama), rows, trainer_folder, accumulation, max_steps=1
    )
    if loss_scale != 1.0:
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=loss_scale)
    trainer.add_callback(catch)
    trainer.train()
    size = len(rows) // accumulation
    batches = [stack(rows[i : i + size]) for i in range(0, len(rows), size)]
    targets = [int(b["labels"][:, 1:].ne(-100).sum()) for b in batches]
    shares = [n / sum(targets) for n in targets]
    assert_same(
        catch.gradients, reference_gradients(tiny_llama, batches, shares, loss_scale=loss_scale)
    )


@pytest.mark.works("Trainers", "fp16's loss scaling", "with a scaler on the CPU")
def test_the_loss_scale_of_fp16_is_followed_by_trainers_that_compute_their_own_loss(
    tiny_llama, trainer_folder
):
    rows, catch = uneven_rows(), CatchGradients()
    trainer = trainer_for(OwnLoss, adapted(tiny_llama), rows, trainer_folder, 1, max_steps=1)
    trainer.model_accepts_loss_kwargs = False
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    trainer.add_callback(catch)
    trainer.train()
    assert_same(
        catch.gradients, reference_gradients(tiny_llama, [stack(rows)], [1.0], loss_scale=256.0)
    )


def test_deepspeed_s_loss_scale_is_that_of_its_optimizer():
    """DeepSpeed's engine multiplies the loss itself; there is no fp16 of it on a CPU."""
    optimizer = SimpleNamespace(loss_scale=64.0)
    engine = SimpleNamespace(optimizer=optimizer)
    host = SimpleNamespace(is_deepspeed_enabled=True, model_wrapped=engine)
    assert _loss_scale(host) == 64.0
    del optimizer.loss_scale  # in bf16
    assert _loss_scale(host) == 1.0


@pytest.mark.refused("Scale-out", "`nn.DataParallel` (one process, several GPUs)")
def test_one_process_on_several_gpus_is_refused(tiny_llama, trainer_folder, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="sees 2 GPUs.*CUDA_VISIBLE_DEVICES"):
        trainer_for(Trainer, adapted(tiny_llama), uneven_rows(), trainer_folder, 2).train()
    quantised = SimpleNamespace(is_loaded_in_4bit=True)  # which transformers does not replicate
    _check_threads(SimpleNamespace(args=SimpleNamespace(n_gpu=2), model=quantised))


@pytest.mark.works("Robustness", "NaN in a router is reported with the module's name")
def test_a_router_that_gives_nan_is_named(tiny_llama, trainer_folder, caplog):
    model = adapted(tiny_llama)
    name = "model.layers.1.self_attn.v_proj"
    broken = model.get_base_model().get_submodule(name)
    broken.alphalora_router["default"].data[0, 0] = float("nan")
    trainer = trainer_for(Trainer, model, uneven_rows(), trainer_folder, 2, max_steps=1)
    with caplog.at_level("ERROR", logger="axolotl_alphalora.trainer"):
        trainer.train()
    assert f"routers gave NaN or infinity in step 1: {name}.default is the first of" in caplog.text


def test_finite_routers_are_not_reported(tiny_llama, trainer_folder, caplog):
    trainer = trainer_for(
        Trainer, adapted(tiny_llama), uneven_rows(), trainer_folder, 2, max_steps=1
    )
    trainer.train()
    assert "NaN" not in caplog.text


def test_the_balance_is_logged_for_training_and_evaluation_apart(tiny_llama, trainer_folder):
    trainer = trainer_for(
        Trainer,
        adapted(tiny_llama),
        uneven_rows(),
        trainer_folder,
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
    evaluated = trainer.evaluate()
    assert "eval_alphalora/aux_loss" in evaluated
    trainer.predict(Rows(uneven_rows()))
    again = {name: value for name, value in trainer.evaluate().items() if "alphalora" in name}
    assert again == {name: evaluated[name] for name in again}, "a prediction is not counted"


class Tracker(TrainerCallback):
    """Stands for wandb and its kin: keeps what it is handed."""

    def __init__(self):
        self.logged = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        """One entry."""
        self.logged.append(dict(logs))


STATISTICS = ("router_entropy", "top_gate", "load_cv", "load_max", "dead_experts")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_statistics_cover_the_micro_batches_of_the_logging_window(
    tiny_llama, trainer_folder, checkpointing
):
    rows, model = uneven_rows(), adapted(tiny_llama)
    model.enable_input_require_grads()
    trainer = trainer_for(
        Trainer,
        model,
        rows,
        trainer_folder,
        2,
        max_steps=1,
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    trainer.train()
    plain = adapted(tiny_llama).train()
    meter = find_balancer(plain).usage["train"] = UsageMeter()
    for half in (rows[:4], rows[4:]):
        plain(**stack(half))
    want = summarise(meter.pop(find_routers(plain)).values())
    (logged,) = [row for row in trainer.state.log_history if "loss" in row]
    got = {name: logged[f"alphalora/{name}"] for name in STATISTICS}
    assert got == pytest.approx({name: want[name] for name in STATISTICS}, abs=1e-6)


def test_trackers_get_each_block_now_and_then_and_the_console_never(
    tiny_llama, trainer_folder, capsys
):
    tracker = Tracker()
    trainer = trainer_for(
        Trainer,
        adapted(tiny_llama),
        uneven_rows(),
        trainer_folder,
        2,
        {"blocks_every": 2},
        max_steps=4,
        eval_strategy="steps",
        eval_steps=4,
    )
    trainer.add_callback(tracker)
    trainer.train()
    key = "alphalora/model.layers.1/router_entropy"
    with_blocks = [row for row in tracker.logged if key in row]
    assert len(with_blocks) == 2
    assert {row.rpartition("/")[2] for row in with_blocks[0]} == set(STATISTICS)
    assert all(f"eval_alphalora/{name}" in tracker.logged[-2] for name in STATISTICS)
    assert not any(key in row for row in trainer.state.log_history)
    assert key not in capsys.readouterr().out


def test_tensorboard_gets_the_model_s_and_the_blocks_numbers(
    tiny_llama, trainer_folder, monkeypatch
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(trainer_folder / "board"))
    settings = {"max_steps": 1, "report_to": "tensorboard"}
    trainer = trainer_for(
        Trainer, adapted(tiny_llama), uneven_rows(), trainer_folder, 2, **settings
    )
    trainer.train()
    (file,) = (trainer_folder / "board").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    names = set(events.Tags()["scalars"])
    assert {f"train/alphalora/{name}" for name in STATISTICS} <= names
    assert {f"train/alphalora/model.layers.1/{name}" for name in STATISTICS} <= names


def test_a_collapsed_router_is_reported_once_with_what_to_change(
    tiny_llama, trainer_folder, caplog
):
    model = adapted(tiny_llama)
    name = "model.layers.1.self_attn.v_proj"
    layer = model.get_base_model().get_submodule(name)
    # All experts but the second get a logit far below its own, whatever the token.
    layer.register_forward_pre_hook(lambda module, args: (args[0].abs(),))
    weight = layer.alphalora_router["default"].data
    weight.fill_(-5.0)[1] = 5.0
    trainer = trainer_for(
        Trainer,
        model,
        uneven_rows(),
        trainer_folder,
        2,
        max_steps=4,
        learning_rate=0.0,
    )
    with pytest.MonkeyPatch.context() as patch, caplog.at_level("WARNING"):
        patch.setattr("axolotl_alphalora.trainer.PATIENCE", 3)
        trainer.train()
    (said,) = [r.getMessage() for r in caplog.records if "gates to one expert" in r.getMessage()]
    assert "1 of 12 routers" in said and "for 3 steps" in said
    assert f"{name}, where expert 2 of 3 has 100 %" in said
    assert "`aux_loss_coef` (now 0.3; try 3)" in said


def test_steps_before_a_resume_do_not_count_as_collapsed():
    watch = CollapseWatch(0.001, 1000)
    usage = {"model.layers.0.q.default": RouterUsage(9, 2, (0.5, 0.5), (0.99, 0.01), 0.1, 0.99)}
    assert watch.see(usage, 1010) is None
    said = watch.see(usage, 1050)
    assert said is not None and "for 50 steps" in said
    assert watch.see(usage, 1060) is None


def test_routers_that_work_are_not_reported(tiny_llama, trainer_folder, caplog):
    trainer = trainer_for(
        Trainer, adapted(tiny_llama), uneven_rows(), trainer_folder, 2, max_steps=4
    )
    with pytest.MonkeyPatch.context() as patch, caplog.at_level("WARNING"):
        patch.setattr("axolotl_alphalora.trainer.PATIENCE", 3)
        trainer.train()
    assert "gates to one expert" not in caplog.text


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_layer_that_never_ran_is_named_after_the_first_step(tiny_llama, trainer_folder, compiled):
    model = adapted(tiny_llama)
    mlp = model.get_base_model().model.layers[1].mlp
    read = mlp.up_proj.weight

    def forward(x):
        return mlp.down_proj(torch.nn.functional.silu(mlp.gate_proj(x)) * (x @ read.T))

    mlp.forward = forward
    compiling = {"torch_compile": True, "torch_compile_backend": "eager"} if compiled else {}
    trainer = trainer_for(
        Trainer, model, uneven_rows(), trainer_folder, 1, max_steps=1, **compiling
    )
    with pytest.warns(UserWarning, match=r"did not run .*: model\.layers\.1\.mlp\.up_proj"):
        trainer.train()
