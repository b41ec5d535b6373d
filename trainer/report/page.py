"""The HTML report: one page that needs no other file, script or network, with tables and curves as SVG."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from trainer.display import displayable
from trainer.report.console import format_number

Series = Mapping[str, Mapping[int, float]]
"""Name of a line -> step -> value."""

WIDTH, HEIGHT = 520, 230
"""Size of a figure."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 10, 10, 24
"""Margins of a figure."""

_MAX_POINTS = 400
_LOG_RATIO = 100.0
"""The axis is logarithmic if the largest value is at least this many times the smallest."""

_COLORS = ("#2a78d6", "#d6622a", "#2e9e5b", "#a44bc4", "#c79a12", "#c43a5d", "#12a3a8", "#777777")

_MARKER = b'<meta name="generator" content="trainer">'
_SEAL, _END = b"\n<!-- checksum ", b" -->\n"
"""The last line of a page contains the CRC32 of all before it. Pages of earlier versions have no such line."""

_TEMPLATE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="generator" content="trainer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8881 }
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.number { text-align: right }
tr.highlighted { background: var(--soft); font-weight: 600 }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1rem }
figure { margin: 0 } figcaption { font-weight: 600 }
svg { width: 100% } svg text { font-size: 11px; fill: currentColor; opacity: .7 }
.grid { stroke: currentColor; opacity: .15 }
polyline { fill: none; stroke: var(--color); stroke-width: 1.6 } circle { fill: var(--color) }
.legend span { margin-right: 1rem } .legend span::before { content: "\\25CF  "; color: var(--color) }
pre { white-space: pre-wrap }
{% for color in colors %}.c{{ loop.index0 }} { --color: {{ color }} }
{% endfor %}
</style>
<h1>{{ title }}</h1>
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% if section.figures %}<div class="figures">
{% for figure in section.figures %}<figure><figcaption>{{ figure.title }}</figcaption>{{ figure.svg }}
{% if figure.names | length > 1 %}<div class="legend">{% for name in figure.names %}\
<span class="c{{ loop.index0 % colors | length }}">{{ name }}</span>{% endfor %}</div>{% endif %}
</figure>
{% endfor %}</div>{% endif %}
{% if section.rows %}<table>
<tr>{% for column in section.columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in section.rows %}<tr{% if row[0] in section.highlighted %} class="highlighted"{% endif %}>\
{% for cell in row %}\
<td{% if cell is number %} class="number"{% endif %}>{{ cell | format_cell }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endif %}
{% if section.text %}<pre>{{ section.text }}</pre>{% endif %}
{% endfor %}
</html>
"""


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Attributes:
        title: Its heading.
        columns, rows: A table.
        highlighted: First cells of the rows that are highlighted.
        figures: Curves by title.
        text: Preformatted lines.
    """

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    highlighted: frozenset[str] = frozenset()
    figures: Mapping[str, Series] = field(default_factory=dict)
    text: str = ""


def is_own_page(path: Path) -> bool:
    """Return whether a file is a page of this tool that nobody has changed.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(1024)
        if _MARKER not in start:
            return False
        page = start + file.read()
    content, mark, rest = page.rpartition(_SEAL)
    return not mark or rest == _checksum(content) + _END


def _checksum(page: bytes) -> bytes:
    return f"{zlib.crc32(page):08x}".encode()


def render_page(title: str, sections: Sequence[Section]) -> str:
    """Return the HTML of a page, without empty sections and figures."""
    shown = [
        {
            **vars(section),
            "figures": [
                {"title": name, "svg": Markup(svg), "names": list(series)}
                for name, series in section.figures.items()
                if (svg := draw_curves(series))
            ],
        }
        for section in sections
    ]
    shown = [section for section in shown if section["rows"] or section["figures"] or section["text"]]
    environment = Environment(autoescape=True, trim_blocks=True, finalize=_finalize)
    environment.filters["format_cell"] = _format_cell
    page = environment.from_string(_TEMPLATE).render(title=title, sections=shown, colors=_COLORS)
    content = page.encode()
    return (content + _SEAL + _checksum(content) + _END).decode()


def _finalize(value: object) -> object:
    return displayable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _format_cell(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return format_number(value)
    return "" if value is None else str(value)


def draw_curves(series: Series) -> str:
    """Return an SVG with a line over the steps for each series, the first with `class="c0"`; "" without finite values.

    Values that are not finite are left out. The axis is logarithmic if all values are positive and far apart.
    """
    lines = {
        name: _thin_out([(x, y) for x, y in sorted(values.items()) if math.isfinite(y)])
        for name, values in series.items()
    }
    values = [y for line in lines.values() for _, y in line]
    if not values:
        return ""
    logarithmic = min(values) > 0 and max(values) / min(values) >= _LOG_RATIO
    scale = math.log10 if logarithmic else float
    low, high = _find_range([scale(y) for y in values])
    first, last = _find_range([float(x) for line in lines.values() for x, _ in line])

    def to_right(x: float) -> float:
        return _LEFT + (x - first) / (last - first) * (WIDTH - _LEFT - _RIGHT)

    def to_bottom(y: float) -> float:
        return _TOP + (high - y) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for tick in place_ticks(low, high):
        shown, y = f"{10**tick if logarithmic else tick:.4g}", to_bottom(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 3:.1f}" text-anchor="end">{shown}</text>')
    parts += [
        f'<text x="{to_right(tick):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{tick:g}</text>'
        for tick in place_ticks(first, last)
    ]
    for number, (name, line) in enumerate(lines.items()):
        points = [(to_right(x), to_bottom(scale(y))) for x, y in line]
        title = escape(displayable(name))
        parts.append(f'<g class="c{number % len(_COLORS)}"><title>{title}</title>{_draw_line(points)}</g>')
    return "".join([*parts, "</svg>"])


def place_ticks(low: float, high: float) -> list[float]:
    """Return two to six round, equally spaced numbers from `low` to `high`."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _draw_line(points: Sequence[tuple[float, float]]) -> str:
    if len(points) == 1:
        return f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3"/>'
    return f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _find_range(values: Sequence[float]) -> tuple[float, float]:
    """Return the smallest and the largest value, or a range around them if they are equal."""
    low, high = min(values), max(values)
    if low < high:
        return low, high
    margin = abs(low) / 2 or 0.5
    return low - margin, high + margin


def _thin_out(line: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most 400 evenly spaced points, including both ends."""
    if len(line) <= _MAX_POINTS:
        return line
    return [line[round(index * (len(line) - 1) / (_MAX_POINTS - 1))] for index in range(_MAX_POINTS)]
