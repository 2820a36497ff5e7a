"""Tables, and pictures of curves and intervals as SVG.

The same bytes for the same numbers, and no package draws them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 30, 50
COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8d6a9f", "#c98a1b", "#555555", "#17a2a2", "#a0522d")


def curves(title: str, series: Mapping[str, Mapping[float, float]]) -> str:
    """Losses over learning rates.

    Args:
        title: What stands above.
        series: Name to learning rate to loss.
    """
    rates = sorted({rate for points in series.values() for rate in points})
    losses = [loss for points in series.values() for loss in points.values()]
    low, high = min(losses), max(losses)
    margin = max(0.08 * (high - low), 1e-4)
    low, high = low - margin, high + margin
    across = math.log2(rates[-1] / rates[0]) or 1.0

    def x(rate: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log2(rate / rates[0]) / across

    def y(loss: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 18, title, "start"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "learning rate", "middle"),
    ]
    for rate in rates:
        lines.append(_line(x(rate), TOP, x(rate), HEIGHT - BOTTOM))
        lines.append(_text(x(rate), HEIGHT - BOTTOM + 18, f"{rate:g}", "middle"))
    for step in range(5):
        loss = low + (high - low) * step / 4
        lines.append(_line(LEFT, y(loss), WIDTH - RIGHT, y(loss)))
        lines.append(_text(LEFT - 8, y(loss) + 4, f"{loss:.4f}", "end"))
    for place, (name, points) in enumerate(series.items()):
        colour = COLOURS[place % len(COLOURS)]
        spots = [(x(rate), y(points[rate])) for rate in sorted(points)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in spots)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in spots]
        height = TOP + 14 + 20 * place
        lines.append(
            f'<rect x="{WIDTH - RIGHT + 14}" y="{height - 9}" width="10" height="10" '
            f'fill="{colour}"/>'
        )
        lines.append(_text(WIDTH - RIGHT + 30, height, name, "start"))
    return "\n".join([*lines, "</svg>\n"])


def intervals(
    title: str, groups: Mapping[str, Sequence[tuple[str, float, float, float]]], matters: float
) -> str:
    """Differences with their intervals, one below the other, group by group.

    Args:
        title: What stands above.
        groups: Heading to name, middle, low and high of each, in percent.
        matters: The least difference that matters, in percent: a band around 0.
    """
    rows = [row for own in groups.values() for row in own]
    reach = max(matters, *(abs(end) for _, *ends in rows for end in ends)) * 1.05
    step = next(
        size for size in (0.25, 0.5, 1, 2, 5, 10, 20, 50) if reach / size <= 4 or size == 50
    )
    left, line = 330, 20
    height = TOP + line * (len(rows) + len(groups)) + BOTTOM
    bottom = height - BOTTOM

    def x(value: float) -> float:
        return left + (WIDTH - left - 20) * (value + reach) / (2 * reach)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(10, 18, title, "start"),
        f'<rect x="{x(-matters):.1f}" y="{TOP}" width="{x(matters) - x(-matters):.1f}" '
        f'height="{bottom - TOP}" fill="#eeeeee"/>',
    ]
    for tick in range(-int(reach / step), int(reach / step) + 1):
        lines.append(_line(x(tick * step), TOP, x(tick * step), bottom))
        lines.append(_text(x(tick * step), bottom + 18, f"{tick * step:g} %", "middle"))
    y = TOP - 6.0
    for place, (heading, own) in enumerate(groups.items()):
        y += line
        lines.append(_text(10, y, heading, "start"))
        for name, middle, low, high in own:
            y += line
            colour = COLOURS[place % len(COLOURS)]
            lines.append(_text(left - 10, y, name, "end"))
            lines.append(
                f'<path d="M{x(low):.1f} {y - 4:.1f}H{x(high):.1f}" stroke="{colour}" '
                'stroke-width="2"/>'
            )
            lines.append(f'<circle cx="{x(middle):.1f}" cy="{y - 4:.1f}" r="4" fill="{colour}"/>')
    return "\n".join([*lines, "</svg>\n"])


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" stroke="#dddddd"/>'


def table_of(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, without columns that are empty in all rows."""
    filled = [place for place in range(len(heads)) if any(row[place] for row in rows)]
    heads, rows = [heads[n] for n in filled], [[row[n] for n in filled] for row in rows]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def signed(value: float) -> str:
    """A number with its sign and two digits; nought has a plus."""
    return f"{round(value, 2) + 0.0:+.2f}"
