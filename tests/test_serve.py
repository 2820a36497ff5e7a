"""The one-file server that we ship, in this process, around a tiny adapter."""

import importlib.util
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from transformers import AutoModelForCausalLM

from helpers.balancing import adapted
from helpers.models import save_tiny_model

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
FILE = Path(__file__).parents[1] / "example_configs" / "serve.py"
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
ASK = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def serve():
    spec = importlib.util.spec_from_file_location("serve", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def loaded(serve, tmp_path_factory):
    root = tmp_path_factory.mktemp("serve")
    save_tiny_model(root / "base")
    model = adapted(AutoModelForCausalLM.from_pretrained(root / "base"))
    model.peft_config["default"].base_model_name_or_path = str(root / "base")
    model.save_pretrained(root / "adapter")
    return serve.load(root / "adapter")


@pytest.fixture
def client(serve, loaded, monkeypatch):
    model, tokenizer = loaded
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    return TestClient(serve.build_app(model, tokenizer, "tiny"))


def text(response, **_):
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return choice["message"]["content"] if "message" in choice else choice["text"]


@pytest.mark.works("PEFT", "serving over HTTP", "`example_configs/serve.py`")
def test_it_answers_what_generation_gives(client, loaded):
    model, tokenizer = loaded
    ids = tokenizer("hello\n", return_tensors="pt")
    row = model.generate(**ids, max_new_tokens=4, do_sample=False)[0, ids.input_ids.shape[1] :]
    expected = tokenizer.decode(row, skip_special_tokens=True)
    chat = client.post(CHAT, json=ASK)
    assert text(chat) == expected
    assert text(client.post(PLAIN, json={"prompt": "hello\n", "max_tokens": 4})) == expected
    with model.disable_adapter():
        assert text(client.post(CHAT, json=ASK)) != expected
    assert chat.json()["object"] == "chat.completion"
    assert chat.json()["usage"] == {
        "prompt_tokens": ids.input_ids.shape[1],
        "completion_tokens": len(row),
        "total_tokens": ids.input_ids.shape[1] + len(row),
    }
    assert chat.json()["choices"][0]["finish_reason"] == "length"


def test_a_temperature_samples(client):
    sampled = {text(client.post(CHAT, json=ASK | {"temperature": 50.0})) for _ in range(4)}
    assert len(sampled) > 1


@pytest.mark.parametrize("wrong", [{"messages": []}, {"max_tokens": 0}, {"temperature": -1}])
def test_a_request_that_makes_no_sense_is_refused(client, wrong):
    assert client.post(CHAT, json=ASK | wrong).status_code == 422


def test_without_a_chat_template_it_names_the_other_route(serve, loaded):
    client = TestClient(serve.build_app(*loaded, "tiny"))
    response = client.post(CHAT, json=ASK)
    assert response.status_code == 400 and PLAIN in response.json()["detail"]


def test_a_directory_without_an_adapter_is_named(serve, tmp_path):
    with pytest.raises(SystemExit, match="has no adapter_config.json"):
        serve.load(tmp_path)
