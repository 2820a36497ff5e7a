""" "all-linear" leaves out the heads that PEFT trains in full, with a task type and without one."""

import re
import warnings

import pytest
import torch
import transformers as hf
from peft import PeftModel, get_peft_model

from axolotl_alphalora.adapter import AlphaLoraConfig, AlphaLoraLayer, resolve_targets
from axolotl_alphalora.planning import Targets

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
LLAMA = {"num_key_value_heads": 2}
IDS = torch.tensor([[5, 6, 7, 8, 9]])
TASKS = {
    "SEQ_CLS": {"labels": torch.tensor([1])},
    "TOKEN_CLS": {"labels": torch.ones(1, 5, dtype=torch.long)},
    "QUESTION_ANS": {"start_positions": torch.tensor([1]), "end_positions": torch.tensor([2])},
}
MODELS = {
    ("llama", "SEQ_CLS"): (hf.LlamaForSequenceClassification, "score"),
    ("llama", "TOKEN_CLS"): (hf.LlamaForTokenClassification, "score"),
    ("llama", "QUESTION_ANS"): (hf.LlamaForQuestionAnswering, "qa_outputs"),
    ("bert", "SEQ_CLS"): (hf.BertForSequenceClassification, "classifier"),
    ("bert", "TOKEN_CLS"): (hf.BertForTokenClassification, "classifier"),
    ("bert", "QUESTION_ANS"): (hf.BertForQuestionAnswering, "qa_outputs"),
    ("roberta", "SEQ_CLS"): (hf.RobertaForSequenceClassification, "classifier"),
    ("roberta", "TOKEN_CLS"): (hf.RobertaForTokenClassification, "classifier"),
}
every_model = pytest.mark.parametrize(("family", "task"), MODELS)


def built(family, task):
    torch.manual_seed(0)
    kind, _ = MODELS[family, task]
    extra = LLAMA if family == "llama" else {}
    return kind(kind.config_class(**SHAPE, **extra))


def config(**changes):
    settings = {"r": 2, "num_experts": 3, "target_modules": "all-linear"}
    return AlphaLoraConfig(**(settings | changes))


def layers(model):
    return {m.module_name: m for m in model.modules() if isinstance(m, AlphaLoraLayer)}


def body(model, head):
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith(head)
    ]


@every_model
def test_the_head_gets_no_experts_in_plan_and_adapter_whatever_the_config_says(family, task):
    model = built(family, task)
    names = body(model, MODELS[family, task][1])
    assert len(names) > 20
    assert list(Targets(linear=True).resolve(model)) == names
    for task_type in (task, None, "FEATURE_EXTRACTION"):
        assert resolve_targets(config(task_type=task_type), model) == names


@every_model
def test_with_its_task_the_head_is_trained_in_full_and_comes_back(family, task, tmp_path):
    head = MODELS[family, task][1]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = get_peft_model(built(family, task), config(task_type=task, init_weights=False))
    assert not any("gets no experts" in str(warning.message) for warning in said)
    assert list(layers(model)) == body(built(family, task), head)
    model.train()(input_ids=IDS, **TASKS[task]).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert any(f".{head}.modules_to_save." in name for name in trained)
    model.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(built(family, task), tmp_path)
    with torch.no_grad():
        want, got = (each.eval()(input_ids=IDS)[0] for each in (model, opened))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


@every_model
def test_one_config_does_for_several_models_and_adapters(family, task):
    one = config(task_type=task)
    for _ in range(2):
        model = get_peft_model(built(family, task), one)
        model.add_adapter("second", one)
        names = body(built(family, task), MODELS[family, task][1])
        assert list(layers(model)) == names
        for adapter in ("default", "second"):
            assert list(model.peft_config[adapter].num_experts) == names
            kept = model.peft_config[adapter].modules_to_save or []
            assert len(set(kept)) == len(kept)


def test_a_list_of_modules_to_save_stays_the_caller_s():
    kept = ["score"]
    one = config(task_type="SEQ_CLS", modules_to_save=kept)
    get_peft_model(built("llama", "SEQ_CLS"), one)
    assert kept == ["score"]


@every_model
def test_without_a_task_a_warning_names_the_head_that_nothing_trains(family, task):
    head = MODELS[family, task][1]
    with pytest.warns(UserWarning) as caught:
        model = get_peft_model(built(family, task), config())
    (said,) = [str(one.message) for one in caught if "The head" in str(one.message)]
    assert re.search(f"The head {head} of .* is not trained.*{task}", said)
    assert list(layers(model)) == body(built(family, task), head)


@pytest.mark.parametrize("changes", [{"target_modules": ["query", "classifier"]}])
def test_a_head_that_is_named_gets_experts_where_nothing_else_trains_it(changes):
    model = get_peft_model(built("bert", "TOKEN_CLS"), config(**changes))
    assert "classifier" in layers(model)
