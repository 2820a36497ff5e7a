"""`callbacks=[AlphaLoraCallback()]` in the trainers of transformers and TRL, without Axolotl.

All batches of a run are alike and nothing is learnt, so that every optimizer step, of however many
micro-batches, must give the routers the gradient of one batch's load-balancing loss. With B at zero
they get no other.
"""

import warnings

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from axolotl_alphalora import AlphaLoraCallback
from axolotl_alphalora.adapter import AlphaLoraConfig, find_balancer
from helpers.balancing import Rows, reference_aux
from helpers.models import save_tiny_model

COEFFICIENT = 100.0
BATCHES = 5
"""Of which an accumulation of 2 and of 4 leaves one over."""


class Steps(TrainerCallback):
    """Keeps what the base model was called with in training, and every step's gradients."""

    def __init__(self, model):
        self.calls, self.gradients, self.logs = [], [], []
        model.get_base_model().register_forward_pre_hook(self.listen, with_kwargs=True)

    def listen(self, base, args, kwargs):
        if base.training and torch.is_grad_enabled():
            self.calls.append({k: v for k, v in kwargs.items() if isinstance(v, torch.Tensor)})

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(routers(model))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def routers(model):
    """Gradients of the trained routers; DPO keeps a frozen copy of the adapter beside it."""
    named = model.named_parameters()
    return {n: p.grad.clone() for n, p in named if "alphalora_router" in n and p.requires_grad}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_tiny_model(folder)
    return folder


def config(task="CAUSAL_LM"):
    return AlphaLoraConfig(
        r=4,
        num_experts=3,
        target_modules=["q_proj", "v_proj", "down_proj"],
        aux_loss_coef=COEFFICIENT,
        task_type=task,
    )


def adapted(base):
    return get_peft_model(LlamaForCausalLM.from_pretrained(base), config())


def token_rows():
    ids = torch.arange(4, 13)
    labels = ids.clone()
    labels[:3] = -100
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}]


def own_loss(outputs, labels, num_items_in_batch=None):
    flat = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(*flat, reduction="sum") / num_items_in_batch


def plain(**options):
    """The HF Trainer with options of its own."""

    def make(base, folder, callbacks, count, **settings):
        arguments = {k: v for k, v in options.items() if k != "compute_loss_func"}
        return Trainer(
            model=adapted(base),
            args=TrainingArguments(folder, **settings, **arguments),
            train_dataset=Rows(token_rows() * count),
            callbacks=callbacks,
            compute_loss_func=options.get("compute_loss_func"),
        )

    return make


def of_trl(name, row, task="CAUSAL_LM", **options):
    """A trainer of TRL, which adds the adapter itself."""

    def make(base, folder, callbacks, count, **settings):
        import trl

        model = LlamaForCausalLM.from_pretrained(base)
        if task == "SEQ_CLS":
            kind = LlamaForSequenceClassification
            model = kind.from_pretrained(base, num_labels=1, pad_token_id=3)
        arguments = getattr(trl, f"{name}Config")(folder, **settings | options.get("args", {}))
        rest = {k: v for k, v in options.items() if k != "args"}
        return getattr(trl, f"{name}Trainer")(
            model=model,
            args=arguments,
            peft_config=config(task),
            train_dataset=Dataset.from_list([row] * count),
            processing_class=AutoTokenizer.from_pretrained(base),
            callbacks=callbacks,
            **rest,
        )

    return make


PAIR = {"prompt": "Say it", "chosen": " yes", "rejected": " no no"}
ANSWER = {"prompt": "Say it", "completion": " yes", "label": True}
# One token is left to choose from, so that all generations are alike.
GENERATION = {"num_generations": 2, "max_completion_length": 5, "top_k": 1, "beta": 0.0}
TRAINERS = {
    "Trainer": plain(),
    "Trainer, label smoothing": plain(label_smoothing_factor=0.1),
    "Trainer, compute_loss_func": plain(compute_loss_func=own_loss),
    "SFTTrainer": of_trl("SFT", {"text": "Say it again and again"}),
    "DPOTrainer": of_trl("DPO", PAIR),
    "KTOTrainer": of_trl("KTO", ANSWER, args={"loss_type": "apo_zero_unpaired"}),
    "RewardTrainer": of_trl("Reward", PAIR, "SEQ_CLS"),
    "GRPOTrainer": of_trl(
        "GRPO",
        {"prompt": "Say it"},
        args=GENERATION,
        reward_funcs=lambda completions, **_: [1.0] * len(completions),
    ),
}
ROWS_OF_A_BATCH = {"KTOTrainer": 2, "GRPOTrainer": 2}


def train(base, folder, name, accumulation, callbacks):
    """Train with batches that are alike; return the trainer and what its steps did."""
    rows = ROWS_OF_A_BATCH.get(name, 1)
    torch.manual_seed(7)
    trainer = TRAINERS[name](
        base,
        str(folder),
        callbacks,
        # The generations of a prompt make up a batch.
        BATCHES if name == "GRPOTrainer" else BATCHES * rows,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=1,
        learning_rate=0.0,
        max_grad_norm=1e9,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    steps = Steps(trainer.model)
    trainer.add_callback(steps)
    trainer.train()
    return trainer, steps


def want(trainer, call):
    """The gradient of one batch's load-balancing loss, from a plain computation of it."""
    reference = trainer.model.train()
    reference.zero_grad()
    for module in reference.modules():
        if hasattr(module, "aux_loss_coef"):
            module.aux_loss_coef["default"] = 0.0
    whole = {"attention_mask": torch.ones_like(call["input_ids"])}
    _, loss = reference_aux(reference, whole | call)
    (COEFFICIENT * loss).backward()
    return routers(reference)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("name", TRAINERS)
def test_every_step_gives_the_routers_one_batch_s_balance(base, trainer_folder, name, accumulation):
    trainer, steps = train(base, trainer_folder, name, accumulation, [AlphaLoraCallback()])
    whole = BATCHES // accumulation if name == "GRPOTrainer" else -(-BATCHES // accumulation)
    assert len(steps.gradients) == whole
    expected = want(trainer, steps.calls[0])
    # A router that is even by chance gets nothing.
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-3
    for got in steps.gradients:
        for router, gradient in expected.items():
            torch.testing.assert_close(got[router], gradient, rtol=1e-3, atol=1e-4 * largest)
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert logged and all(2 - 1e-3 < row["alphalora/aux_loss"] < 6 for row in logged)
    assert any("alphalora/router_entropy" in row for row in steps.logs)


@pytest.mark.parametrize(
    ("kind", "row", "options"),
    [
        ("DPO", PAIR, {}),
        ("KTO", ANSWER, {"loss_type": "apo_zero_unpaired"}),
        ("GRPO", {"prompt": "Say it"}, {"num_generations": 2, "beta": 0.1}),
    ],
)
def test_trl_s_reference_is_the_adapter_as_it_was(base, trainer_folder, kind, row, options):
    """TRL adds it to a model that comes with an adapter, and copies tensors by a LoRA's names."""
    import trl

    trained = get_peft_model(LlamaForCausalLM.from_pretrained(base), config())
    with torch.no_grad():
        for name, tensor in trained.named_parameters():
            if "alphalora_B" in name:
                tensor.normal_()
    given = {"reward_funcs": lambda completions, **_: [1.0]} if kind == "GRPO" else {}
    settings = {"use_cpu": True, "bf16": False, "report_to": "none"} | options
    trainer = getattr(trl, f"{kind}Trainer")(
        model=trained,
        args=getattr(trl, f"{kind}Config")(
            str(trainer_folder), per_device_train_batch_size=2, **settings
        ),
        train_dataset=Dataset.from_list([row] * 2),
        processing_class=AutoTokenizer.from_pretrained(base),
        **given,
    )
    tensors = dict(trainer.model.named_parameters())
    copies = {name: value for name, value in tensors.items() if name.endswith(".ref")}
    assert copies and not any(copy.requires_grad for copy in copies.values())
    for name, copy in copies.items():
        assert torch.equal(copy, tensors[name.removesuffix("ref") + "default"]), name


def test_an_evaluation_does_not_measure_the_reference(base, trainer_folder):
    import trl

    trained = get_peft_model(LlamaForCausalLM.from_pretrained(base), config())
    trainer = trl.DPOTrainer(
        model=trained,
        args=trl.DPOConfig(str(trainer_folder), use_cpu=True, bf16=False, report_to="none"),
        train_dataset=Dataset.from_list([PAIR]),
        eval_dataset=Dataset.from_list([PAIR]),
        processing_class=AutoTokenizer.from_pretrained(base),
        callbacks=[AlphaLoraCallback()],
    )
    logged = []
    for scale in (1.0, 1000.0):
        with torch.no_grad():
            for name, tensor in trainer.model.named_parameters():
                if name.endswith("alphalora_router.ref"):
                    tensor.mul_(scale)
        found = trainer.evaluate()
        logged.append({key: value for key, value in found.items() if "alphalora" in key})
    assert "eval_alphalora/aux_loss" in logged[0]
    assert logged[1] == pytest.approx(logged[0])


@pytest.mark.parametrize("name", TRAINERS)
def test_where_the_callback_is_missing_one_warning_names_it(base, trainer_folder, name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(base, trainer_folder, name, 2, [])
    said = [str(one.message) for one in caught if "AlphaLoraCallback" in str(one.message)]
    assert len(said) == (0 if name in ("Trainer", "SFTTrainer") else 1)


def test_a_scale_of_one_s_own_silences_the_warning(base):
    model = adapted(base).train()
    find_balancer(model).scale.default = 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = token_rows()[0]
        model(row["input_ids"][None]).logits.sum().backward()


def test_a_model_without_the_adapter_is_refused(base, trainer_folder):
    trainer = Trainer(
        LlamaForCausalLM.from_pretrained(base),
        TrainingArguments(str(trainer_folder), use_cpu=True, report_to="none"),
        train_dataset=Rows(token_rows()),
        callbacks=[AlphaLoraCallback()],
    )
    with pytest.raises(ValueError, match="has no AlphaLoRA adapter"):
        trainer.train()


def test_one_callback_serves_one_trainer(base, trainer_folder):
    callback = AlphaLoraCallback()
    settings = {"use_cpu": True, "report_to": "none"}
    make = TRAINERS["Trainer"]
    make(base, str(trainer_folder), [callback], 1, **settings)
    with pytest.raises(ValueError, match="one trainer"):
        make(base, str(trainer_folder), [callback], 1, **settings)


def test_the_scale_of_a_run_does_not_outlive_it(base, trainer_folder):
    trainer, _ = train(base, trainer_folder, "Trainer, label smoothing", 4, [AlphaLoraCallback()])
    assert find_balancer(trainer.model).scale.default is None
    model, trainer.compute_loss = trainer.model, None
    with pytest.raises(TypeError):
        trainer.train()
    assert find_balancer(model).scale.default is None
