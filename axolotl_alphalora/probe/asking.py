"""Asks a model, or a server in the style of OpenAI's API, for greedy answers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from http.client import HTTPException, InvalidURL
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch

from ..files import parse_json
from .answers import MISREAD, Answer, Step, as_logprobs

TOP = 5
"""Tokens whose log-probabilities are asked for at each place; as many as most servers give."""

_SECONDS = 300.0


@torch.inference_mode()
def ask_model(model: Any, tokenizer: Any, prompt: str, tokens: int) -> Answer:
    """Continue a text with the most likely tokens, and no other rule.

    Args:
        model: A causal language model of transformers or PEFT, in evaluation mode.
        tokenizer: Its tokenizer.
        prompt: The text; the tokenizer adds what it adds to each text.
        tokens: Length of the answer at most.
    """
    device = next(model.parameters()).device
    inputs = tokenizer(prompt, return_tensors="pt")["input_ids"].to(device)
    ends = _ends(model, tokenizer)
    steps: list[Step] = []
    ids: list[int] = []
    past = None
    while len(ids) < tokens and not (ids and ids[-1] in ends):
        out = model(input_ids=inputs, past_key_values=past, use_cache=True)
        past = out.past_key_values
        likeliest = out.logits[0, -1].float().log_softmax(-1).topk(TOP)
        words = [_text(tokenizer, token) for token in likeliest.indices.tolist()]
        logprobs = likeliest.values.tolist()
        # Of tokens with the same text the likeliest.
        top = dict(reversed(list(zip(words, logprobs, strict=True))))
        best = int(likeliest.indices[0])
        ids.append(best)
        steps.append(Step("" if best in ends else words[0], logprobs[0], top))
        inputs = torch.tensor([[best]], device=device)
    return Answer(tokenizer.decode(ids, skip_special_tokens=True), tuple(steps))


def _text(tokenizer: Any, token: int) -> str:
    """A token as text, with its first space, which a tokenizer leaves out at the beginning."""
    before = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    return tokenizer.decode([*before, token]).removeprefix(tokenizer.decode(before))


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer."""
    settings = getattr(model, "generation_config", None)
    ends = getattr(settings, "eos_token_id", None)
    found = set(ends) if isinstance(ends, list) else {ends}
    return {token for token in found | {tokenizer.eos_token_id} if token is not None}


def ask_server(
    url: str,
    prompts: Sequence[str],
    tokens: int,
    *,
    model: str | None = None,
    step: Callable[[str], None] | None = None,
) -> list[Answer]:
    """Ask the route `/v1/completions` of a server for greedy answers with log-probabilities.

    The environment's `OPENAI_API_KEY` is sent along, if there is one.

    Args:
        url: Of the server, with or without `/v1`.
        prompts: The texts.
        tokens: Length of an answer at most.
        model: Name of the model there; by default the only one that the server lists.
        step: Called after each answer.

    Raises:
        ValueError: If the server lists several models, answers with an error or without
            log-probabilities; says what to do.
        OSError: If it cannot be reached.
    """
    root = url.rstrip("/")
    root = root if root.endswith("/v1") else f"{root}/v1"
    name = model or _only_model(root)
    answers = []
    for prompt in prompts:
        body = {"model": name, "prompt": prompt, "max_tokens": tokens, "logprobs": TOP}
        body |= {"temperature": 0, "top_p": 1, "seed": 0}
        answers.append(_answer(_request(f"{root}/completions", body)))
        if step is not None:
            step(prompt)
    return answers


def _only_model(root: str) -> str:
    listed = _request(f"{root}/models").get("data")
    rows = listed if isinstance(listed, list) else []
    names = [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row]
    if len(names) != 1:
        raise ValueError(
            f"{root} lists {len(names)} models ({', '.join(names)}): say with --model which is to "
            "be the adapter."
        )
    return names[0]


def _request(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    try:
        with urlopen(Request(url, data, headers), timeout=_SECONDS) as response:
            found = parse_json(response.read())
    except HTTPError as error:
        said = error.read().decode(errors="replace")[:500]
        raise ValueError(f"{url} answers {error.code}: {said}") from error
    except URLError as error:
        raise OSError(f"{url} cannot be reached: {error.reason}") from error
    except TimeoutError as error:
        raise OSError(f"{url} has not answered within {_SECONDS:.0f} s") from error
    except InvalidURL as error:
        raise ValueError(f"{url} is no address: {error}") from error
    except (HTTPException, ConnectionError) as error:
        raise OSError(
            f"{url} ends the connection without an answer ({type(error).__name__}: {error}). Is "
            "it a server that speaks HTTP, and is http or https right?"
        ) from error
    except ValueError as error:  # neither JSON nor text
        raise ValueError(f"{url} does not answer with JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{url} answers with a {type(found).__name__}, not with a JSON object.")
    return found


def _answer(response: dict[str, Any]) -> Answer:
    """Read a completion, whose log-probabilities servers write in one of two forms."""
    try:
        choice = response["choices"][0]
        text, found = choice["text"], choice.get("logprobs") or {}
        if "content" in found:  # as for chats: llama.cpp
            steps = [
                Step(
                    row["token"],
                    float(row["logprob"]),
                    as_logprobs(
                        {one["token"]: one["logprob"] for one in row.get("top_logprobs") or ()}
                    ),
                )
                for row in found["content"]
            ]
        else:
            tops = found.get("top_logprobs") or [{}] * len(found["tokens"])
            rows = zip(found["tokens"], found["token_logprobs"], tops, strict=True)
            steps = [
                Step(token, float(value), as_logprobs(top or {})) for token, value, top in rows
            ]
    except (*MISREAD, IndexError, AttributeError) as error:
        raise ValueError(
            "the server's completions have no log-probabilities, which the probe goes by "
            f"({type(error).__name__}: {error})."
        ) from error
    answer = Answer(text, tuple(steps))
    # Some servers list the token that ends the answer, with its name.
    if steps and choice.get("finish_reason") == "stop" and not text.endswith(steps[-1].token):
        answer = replace(answer, steps=(*steps[:-1], replace(steps[-1], token="")))
    return answer
