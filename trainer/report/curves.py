"""Curves as SVG, to stand in a page without a script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Series = Mapping[str, Mapping[int, float]]
"""By name: a value by step."""

WIDTH, HEIGHT = 520, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 10, 10, 24
_MOST_POINTS = 400
_NUM_COLORS = 8
_WIDE = 100.0
"""From this ratio of the largest to the smallest value on, the axis is logarithmic."""


def curves(series: Series) -> str:
    """An SVG of lines over the steps, one for each series, `class="c0"` the first; "" without a finite value.

    Values that are not finite are left out. The axis is logarithmic where all values are above 0 and far apart.
    """
    lines = {name: _thinned([(x, y) for x, y in sorted(of.items()) if math.isfinite(y)]) for name, of in series.items()}
    values = [y for line in lines.values() for _, y in line]
    if not values:
        return ""
    logarithmic = min(values) > 0 and max(values) / min(values) >= _WIDE
    scale = math.log10 if logarithmic else float
    low, high = _span([scale(y) for y in values])
    first, last = _span([float(x) for line in lines.values() for x, _ in line])

    def right(x: float) -> float:
        return _LEFT + (x - first) / (last - first) * (WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return _TOP + (high - y) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for tick in ticks(low, high):
        shown, y = f"{10**tick if logarithmic else tick:.4g}", down(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 3:.1f}" text-anchor="end">{shown}</text>')
    parts += [
        f'<text x="{right(tick):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{tick:g}</text>'
        for tick in ticks(first, last)
    ]
    for number, (name, line) in enumerate(lines.items()):
        points = [(right(x), down(scale(y))) for x, y in line]
        parts.append(f'<g class="c{number % _NUM_COLORS}"><title>{escape(name)}</title>{_drawn(points)}</g>')
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float) -> list[float]:
    """Two to six round numbers from `low` to `high`, equally far apart."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _drawn(points: Sequence[tuple[float, float]]) -> str:
    if len(points) == 1:
        return f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3"/>'
    return f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest; of equal ones a span around them."""
    low, high = min(values), max(values)
    if low < high:
        return low, high
    room = abs(low) / 2 or 0.5
    return low - room, high + room


def _thinned(line: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most 400 points, evenly spread, the ends among them."""
    if len(line) <= _MOST_POINTS:
        return line
    return [line[round(index * (len(line) - 1) / (_MOST_POINTS - 1))] for index in range(_MOST_POINTS)]
