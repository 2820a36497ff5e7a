"""Splitting what is typed, but not inside the brackets or quotes of a value."""

from __future__ import annotations

import re

__all__ = ["split_outside"]

# A quote inside a word is an apostrophe; two single quotes inside a quoted text stand for one.
_TOKEN = re.compile(r""""(?:\\.|[^"\\])*"|(?<!\w)'(?:''|[^'])*'|.""", re.DOTALL)


def split_outside(text: str, separator: str) -> list[str]:
    """Split at every separator that is outside square and curly brackets and quotes, as in YAML.

    Args:
        text: The text.
        separator: One character.

    Returns:
        The parts, without spaces around them.
    """
    parts, depth = [""], 0
    for token in _TOKEN.findall(text):
        if token == separator and not depth:
            parts.append("")
            continue
        if token in "[{":
            depth += 1
        elif token in "]}":
            depth = max(0, depth - 1)
        parts[-1] += token
    return [part.strip() for part in parts]
