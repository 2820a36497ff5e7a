"""Which of the models that a probe knows has given some answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .answers import ADAPTER, BASE, Answer, Probe

_NOISE = 0.25
"""More than quantising a model moves its log-probabilities by, in nats on average."""

_UNSEEN_END = math.log(0.5)
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
        ValueError: If adapter and base answer alike, so that nothing can be told.
    """
    names = list(probe.asked[0].answers)
    distances = {
        name: _mean([_differences(one.answers[name], seen) for one, seen in _pairs(probe, answers)])
        for name in names
    }
    gaps = separations(probe)
    if gaps[BASE] == 0:
        raise ValueError(
            "adapter and base answer the probe's prompts alike, so they cannot be told apart: "
            "write it anew with other rows."
        )
    allowed = min(min(gaps.values()) / 2, _NOISE) if tolerance is None else tolerance
    nearest = min(distances, key=lambda name: distances[name])
    known = nearest in (ADAPTER, BASE) and distances[nearest] <= allowed
    same = {
        name: sum(one.answers[name].text == seen.text for one, seen in _pairs(probe, answers))
        for name in names
    }
    served = nearest if known else None
    return Verdict(served, nearest, distances, allowed, same, len(answers))


def separations(probe: Probe) -> dict[str, float]:
    """How far each other known model is from the adapter, in the unit of :class:`Verdict`."""
    names = [name for name in probe.asked[0].answers if name != ADAPTER]
    return {
        name: _mean([_differences(one.answers[ADAPTER], one.answers[name]) for one in probe.asked])
        for name in names
    }


def _pairs(probe: Probe, answers: Sequence[Answer]) -> list[tuple]:
    return list(zip(probe.asked, answers, strict=True))


def _mean(found: Sequence[Sequence[float]]) -> float:
    """Over all tokens of all prompts."""
    values = [value for one in found for value in one]
    return sum(values) / max(len(values), 1)


def _differences(known: Answer, seen: Answer) -> list[float]:
    """How much the log-probabilities of two greedy answers differ, token by token.

    Up to the first token that is another one they are both known. There, `known` gives its own
    token p and any other at most min(p, 1 - p), so the difference is at least what `seen` gives
    its token beyond that. What follows has another beginning, and is not compared.
    """
    found = []
    for index, (token, logprob) in enumerate(zip(known.tokens, known.logprobs, strict=True)):
        told = index < len(seen.tokens)
        ends = not token and (index == len(seen.tokens) or (told and not seen.tokens[index]))
        if ends and not told:
            break
        there = seen.logprobs[index] if told else _UNSEEN_END
        if ends or (told and _same(token, seen.tokens[index])):
            found.append(abs(logprob - there))
            continue
        rest = math.log1p(-math.exp(logprob)) if logprob < 0 else -math.inf
        found.append(min(max(0.0, there - min(logprob, rest)), _FAR))
        break
    return found


_FAR = 20.0
"""Log-probabilities further apart are as good as infinitely far."""


def _same(token: str, other: str) -> bool:
    """Whether two servers' texts of a token mean the same one: some leave out its first space."""
    return token == other or (token.strip() == other.strip() != "")
