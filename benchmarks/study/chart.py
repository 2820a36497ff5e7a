"""A picture of curves as SVG, the same bytes for the same numbers; it needs nothing installed."""

from __future__ import annotations

import math
from collections.abc import Mapping
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


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" stroke="#dddddd"/>'
