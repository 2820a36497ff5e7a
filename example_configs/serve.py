"""Serve an adapter over HTTP, in the style of OpenAI's API. One file, to copy and to change.

    pip install fastapi uvicorn      # an environment with Axolotl has both
    python serve.py outputs/alphalora [--port 8000] [--load-in-4bit]
    curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \
        -d '{"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 64}'

One request is answered at a time, whole (no streaming). No authentication: keep it local.
"""

import argparse
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException
from jinja2 import TemplateError
from peft import AutoPeftModelForCausalLM, PeftConfig
from pydantic import BaseModel, Field
from transformers import AutoTokenizer, BitsAndBytesConfig

import axolotl_alphalora  # noqa: F401  PEFT learns of the method


class Sampling(BaseModel):
    max_tokens: int = Field(256, ge=1)
    temperature: float = Field(0.0, ge=0.0)


class Chat(Sampling):
    messages: list[dict[str, str]] = Field(min_length=1)


class Completion(Sampling):
    prompt: str = Field(min_length=1)


def load(folder: Path, load_in_4bit: bool = False) -> tuple[Any, Any]:
    """The base model with the adapter, and the tokenizer: the adapter's own, or the base's."""
    if not (folder / "adapter_config.json").is_file():
        raise SystemExit(f"{folder} has no adapter_config.json: it is not an adapter's directory.")
    options: dict[str, Any] = {"device_map": "auto"} if torch.cuda.is_available() else {}
    if load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype="auto", **options).eval()
    own = (folder / "tokenizer_config.json").is_file()
    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    return model, AutoTokenizer.from_pretrained(folder if own else base)


def build_app(model: Any, tokenizer: Any, name: str) -> FastAPI:
    """The HTTP application around a loaded model."""
    app, lock = FastAPI(title=name), threading.Lock()

    def answer(request: Sampling, inputs: Any, kind: str) -> tuple[dict[str, Any], str, str]:
        length = inputs["input_ids"].shape[1]
        options: dict[str, Any] = {"max_new_tokens": request.max_tokens, "do_sample": False}
        if request.temperature > 0:
            options |= {"do_sample": True, "temperature": request.temperature}
        with lock:
            row = model.generate(**inputs.to(model.device), **options)[0, length:]
        usage = {"prompt_tokens": length, "completion_tokens": len(row)}
        usage["total_tokens"] = length + len(row)
        head = {"id": uuid.uuid4().hex, "object": kind, "created": int(time.time()), "model": name}
        why = "length" if len(row) == request.max_tokens else "stop"
        return head | {"usage": usage}, tokenizer.decode(row, skip_special_tokens=True), why

    @app.post("/v1/chat/completions")
    def chat(request: Chat) -> dict[str, Any]:
        if tokenizer.chat_template is None:
            raise HTTPException(400, "The tokenizer has no chat template: use /v1/completions.")
        try:
            inputs = tokenizer.apply_chat_template(
                request.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        except TemplateError as error:
            raise HTTPException(
                400, f"The chat template refuses these messages: {error}"
            ) from error
        head, text, why = answer(request, inputs, "chat.completion")
        message = {"role": "assistant", "content": text}
        return head | {"choices": [{"index": 0, "message": message, "finish_reason": why}]}

    @app.post("/v1/completions")
    def completions(request: Completion) -> dict[str, Any]:
        inputs = tokenizer(request.prompt, return_tensors="pt")
        head, text, why = answer(request, inputs, "text_completion")
        return head | {"choices": [{"index": 0, "text": text, "finish_reason": why}]}

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve an adapter over HTTP.")
    parser.add_argument("adapter", type=Path, help="a directory with adapter_config.json")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--load-in-4bit", action="store_true", help="needs bitsandbytes")
    arguments = parser.parse_args()
    app = build_app(*load(arguments.adapter, arguments.load_in_4bit), arguments.adapter.name)
    uvicorn.run(app, port=arguments.port)
