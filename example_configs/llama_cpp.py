"""Serve a LoRA that `alphalora export --gguf` wrote by llama.cpp, in the style of OpenAI's API.

    pip install xllamacpp      # llama.cpp and its server as a wheel
    python llama_cpp.py lora.gguf [--base BASE.gguf] [--port 8080]
    curl localhost:8080/v1/chat/completions -H 'Content-Type: application/json' \
        -d '{"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 64}'

`llama-server --model BASE.gguf --lora lora.gguf --port 8080` of any llama.cpp does the same.
"""

import argparse
import threading
from pathlib import Path

import xllamacpp


def start(lora: Path, base: Path, port: int) -> xllamacpp.Server:
    """Start the server; it runs until the object is gone."""
    params = xllamacpp.CommonParams()
    params.model.path = str(base)
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
    params.n_ctx = 4096
    params.port = port
    return xllamacpp.Server(params)


def quickstart_base() -> Path:
    """The GGUF file of the quickstart's model."""
    from axolotl_alphalora.quickstart.model import bundled_gguf

    return bundled_gguf()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a LoRA by llama.cpp.")
    parser.add_argument("lora", type=Path, help="the file that --gguf wrote")
    parser.add_argument("--base", type=Path, help="the base model's .gguf; else the quickstart's")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    server = start(arguments.lora, arguments.base or quickstart_base(), arguments.port)
    print(f"Listening on {server.listening_address}")
    threading.Event().wait()
