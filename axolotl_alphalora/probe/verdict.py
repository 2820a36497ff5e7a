"""Which of the models that a probe knows has given some answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .answers import ADAPTER, BASE, Answer, Probe, Step

_NOISE = 0.25
"""More than quantising a model moves its log-probabilities by, in nats on average."""

_UNTOLD_END = math.log(0.5)
"""The log-probability of an answer's end where a server does not tell it."""


@dataclass(frozen=True)
class Verdict:
    """Who has answered.

    Attributes:
        served: `adapter`, `base`, or None for something else.
        nearest: The known model whose answers are nearest.
        distances: Name of each known model to the mean difference of log-probabilities, in nats.
        tolerance: How far the nearest may be to be it.
        same: Name of each known model to the number of prompts with the very same answer.
        prompts: Number of prompts.
    """

    served: str | None
    nearest: str
    distances: Mapping[str, float]
    tolerance: float
    same: Mapping[str, int]
    prompts: int


def judge(probe: Probe, answers: Sequence[Answer], tolerance: float | None = None) -> Verdict:
    """Find out who has answered a probe's prompts.

    Args:
        probe: What the known models answer.
        answers: To each of its prompts.
        tolerance: How far the nearest may be; by default half of the distance between the adapter
            and what is nearest to it among the known models.

    Raises:
        ValueError: If adapter and base answer alike, or nothing of the answers can be compared.
    """
    names = list(probe.asked[0].answers)
    pairs = list(zip(probe.asked, answers, strict=True))
    distances = {
        name: _mean([_differences(one.answers[name], seen) for one, seen in pairs])
        for name in names
    }
    if math.inf in distances.values():
        raise ValueError("the answers have no token that can be compared: ask with other prompts.")
    gaps = separations(probe)
    if gaps[BASE] == 0:
        raise ValueError(
            "adapter and base answer the probe's prompts alike, so they cannot be told apart: "
            "write it anew with other rows."
        )
    allowed = min(min(gaps.values()) / 2, _NOISE) if tolerance is None else tolerance
    same = {name: sum(one.answers[name].text == seen.text for one, seen in pairs) for name in names}
    nearest = min(distances, key=lambda name: (distances[name], -same[name]))
    known = nearest in (ADAPTER, BASE) and distances[nearest] <= allowed
    served = nearest if known else None
    return Verdict(served, nearest, distances, allowed, same, len(answers))


def separations(probe: Probe) -> dict[str, float]:
    """How far each other known model is from the adapter, in the unit of `Verdict`."""
    names = [name for name in probe.asked[0].answers if name != ADAPTER]
    return {
        name: _mean([_differences(one.answers[ADAPTER], one.answers[name]) for one in probe.asked])
        for name in names
    }


def _mean(found: Sequence[Sequence[float]]) -> float:
    """Over all tokens of all prompts; infinite if there is none."""
    values = [value for one in found for value in one]
    return sum(values) / len(values) if values else math.inf


def _differences(known: Answer, seen: Answer) -> list[float]:
    """How much the log-probabilities of two greedy answers differ, token by token.

    At the first token that is another one, those of both tokens are compared. What follows has
    another beginning, and is not.
    """
    found: list[float] = []
    for index, step in enumerate(known.steps):
        told = seen.steps[index] if index < len(seen.steps) else None
        if told is None and not step.token:
            break  # both end here, and how sure that was is not told
        if told is None:
            told = Step("", _UNTOLD_END, {})
        if _same(step.token, told.token):
            found.append(abs(step.logprob - told.logprob))
            continue
        if _PART in step.token:
            break  # a server may tell of a whole character's tokens as one
        found.append(max(_difference(step, told), _difference(told, step)))
        break
    return found


def _difference(one: Step, other: Step) -> float:
    """How differently two places see the token that the first chose; at least so much."""
    for token, logprob in other.top.items():
        if _same(one.token, token):
            return abs(one.logprob - logprob)
    # It is not among the likeliest there, nor likelier than what the one chosen leaves.
    chosen = math.exp(min(other.logprob, -1e-9))
    most = min([math.log1p(-chosen), other.logprob, *other.top.values()])
    return max(0.0, one.logprob - most)


def _same(token: str, other: str) -> bool:
    """Whether a token is the one that a server tells of.

    Servers leave out a token's first space, or all of it where it is special or a part of a
    character, which may also be told as bytes.
    """
    if not other:
        return not token or _PART in token or (token[0], token[-1]) == ("<", ">")
    if _PART in token and other.startswith("bytes:"):
        return True
    return token == other or token.strip() == other.strip() != ""


_PART = "\ufffd"
