"""A server in the style of OpenAI's API, as vLLM writes its answers, around a model in PyTorch."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

from axolotl_alphalora.probe import ask_model


@contextmanager
def openai_server(models, tokenizer, log_probabilities=True):
    """Serves models by their names; yields the URL and the requests that came."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def send(self, document, status=200):
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.send({"data": [{"id": name} for name in models]})

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, asked, self.headers.get("Authorization")))
            if asked["model"] not in models:
                self.send({"error": f"the model {asked['model']} does not exist"}, 404)
                return
            answer = ask_model(
                models[asked["model"]], tokenizer, asked["prompt"], asked["max_tokens"]
            )
            found = {
                "tokens": [step.token or tokenizer.eos_token for step in answer.steps],
                "token_logprobs": [step.logprob for step in answer.steps],
                "top_logprobs": [step.top for step in answer.steps],
            }
            ended = not answer.steps[-1].token
            choice = {
                "text": answer.text,
                "logprobs": found if log_probabilities else None,
                "finish_reason": "stop" if ended else "length",
            }
            self.send({"choices": [choice]})

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
