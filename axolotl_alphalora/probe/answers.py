"""The file `probe.json`: prompts, and what several models answer to them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import parse_json

FORMAT, VERSION = "axolotl-alphalora probe", 1

ADAPTER, BASE = "adapter", "base"
SCALES: Mapping[str, float] = {"half": 0.5, "double": 2.0}
"""Wrong scales whose answers are written down too, so that they can be recognised."""


@dataclass(frozen=True)
class Step:
    """One token of a greedy continuation.

    Attributes:
        token: As text; empty where it ends the answer.
        logprob: Its log-probability, in nats.
        top: The likeliest tokens there, this one included, to their log-probabilities.
    """

    token: str
    logprob: float
    top: Mapping[str, float]


@dataclass(frozen=True)
class Answer:
    """A greedy continuation.

    Attributes:
        text: Without special tokens.
        steps: Its tokens.

    Raises:
        ValueError: If a text is none, or a log-probability no finite number.
    """

    text: str
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        for text in (self.text, *(step.token for step in self.steps)):
            if not isinstance(text, str):
                raise ValueError(f"an answer or a token of it is {text!r}, and no text.")
        for step in self.steps:
            for token, logprob in ((step.token, step.logprob), *step.top.items()):
                if not math.isfinite(logprob):
                    raise ValueError(
                        f"the log-probability of {token!r} is {logprob}, so nothing can be said of "
                        "who answers: the weights of the model, or what is computed with them, are "
                        "no finite numbers."
                    )

    @property
    def logprob(self) -> float:
        """The log-probability of the whole, in nats."""
        return sum(step.logprob for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON values, with its summed log-probability."""
        steps = [
            [step.token, round(step.logprob, 6), {k: round(v, 6) for k, v in step.top.items()}]
            for step in self.steps
        ]
        return {"text": self.text, "logprob": round(self.logprob, 6), "steps": steps}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Answer:
        """Read what `to_dict` wrote."""
        steps = tuple(
            Step(token, float(lp), as_logprobs(top)) for token, lp, top in document["steps"]
        )
        return cls(document["text"], steps)


MISREAD = (KeyError, TypeError, ValueError, OverflowError, RecursionError)
"""What reading an answer of another form may raise."""


def as_logprobs(top: Mapping[str, Any]) -> dict[str, float]:
    """Tokens to log-probabilities, as numbers."""
    return {token: float(logprob) for token, logprob in dict(top).items()}


@dataclass(frozen=True)
class Asked:
    """A prompt and what is answered to it.

    Attributes:
        prompt: The text.
        answers: Name of a model to its answer: `adapter`, `base`, and those of `SCALES`.
    """

    prompt: str
    answers: Mapping[str, Answer]


@dataclass(frozen=True)
class Probe:
    """Prompts, and what adapter and base answer.

    Attributes:
        base_model: What the adapter is for.
        method: How the adapter computes: `alphalora` (routed) or `lora`.
        tokens: Length of the answers at most.
        asked: The prompts.
    """

    base_model: str
    method: str
    tokens: int
    asked: Sequence[Asked]

    def to_json(self) -> str:
        """The content of `probe.json`."""
        prompts = [
            {"prompt": one.prompt, **{name: a.to_dict() for name, a in one.answers.items()}}
            for one in self.asked
        ]
        head = {key: value for key, value in asdict(self).items() if key != "asked"}
        document = {"format": FORMAT, "version": VERSION, **head, "prompts": prompts}
        return json.dumps(document, indent=None, ensure_ascii=False, allow_nan=False) + "\n"


def read_probe(path: Path) -> Probe:
    """Read a `probe.json`.

    Raises:
        ValueError: If it is none, or of a newer version; says which file.
    """
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError("it is not a file that `alphalora probe --write` writes")
        if document["version"] > VERSION:
            raise ValueError("it is of a newer release of axolotl-alphalora")
        asked = [
            Asked(
                row["prompt"],
                {name: Answer.from_dict(a) for name, a in row.items() if name != "prompt"},
            )
            for row in document["prompts"]
        ]
        if not asked or not all({ADAPTER, BASE} <= set(one.answers) for one in asked):
            raise ValueError("it lacks answers of adapter and base")
        for number, one in enumerate(asked, 1):
            if not isinstance(one.prompt, str):
                raise ValueError(f"prompt {number} is {one.prompt!r}, and no text")
            if other := one.answers.keys() ^ asked[0].answers.keys():
                raise ValueError(f"prompt {number} and the first differ in {min(other)}")
        base, method = document["base_model"], document["method"]
        return Probe(base, method, int(document["tokens"]), asked)
    except OSError as error:
        raise ValueError(
            f"cannot read {path} ({error.strerror}): write it with `alphalora probe ADAPTER_DIR "
            "--write --data ROWS.jsonl`."
        ) from error
    except MISREAD as error:
        what = f"`{error.args[0]}` is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} cannot be used as a probe: {what}.") from error
