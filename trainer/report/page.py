"""One page of HTML that stands alone: no script, no style sheet, font or image from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from trainer.report.console import number
from trainer.report.curves import Series, curves

_TEMPLATE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8881 }
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.number { text-align: right }
tr.marked { background: var(--soft); font-weight: 600 }
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
<span class="c{{ loop.index0 % 8 }}">{{ name }}</span>{% endfor %}</div>{% endif %}
</figure>
{% endfor %}</div>{% endif %}
{% if section.rows %}<table>
<tr>{% for column in section.columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in section.rows %}<tr{% if row[0] in section.marked %} class="marked"{% endif %}>{% for cell in row %}\
<td{% if cell is number %} class="number"{% endif %}>{{ cell | shown }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endif %}
{% if section.text %}<pre>{{ section.text }}</pre>{% endif %}
{% endfor %}
</html>
"""

_COLORS = ("#2a78d6", "#d6622a", "#2e9e5b", "#a44bc4", "#c79a12", "#c43a5d", "#12a3a8", "#777777")


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: Its heading.
        columns, rows: A table.
        marked: Which rows stand out, by their first cell.
        figures: Curves by title.
        text: Lines as they are.
    """

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    marked: frozenset[str] = frozenset()
    figures: Mapping[str, Series] = field(default_factory=dict)
    text: str = ""


def page(title: str, sections: Sequence[Section]) -> str:
    """The HTML of a page; sections without content and figures without a value are left out."""
    shown = [
        {
            **vars(section),
            "figures": [
                {"title": name, "svg": Markup(svg), "names": list(series)}
                for name, series in section.figures.items()
                if (svg := curves(series))
            ],
        }
        for section in sections
    ]
    shown = [section for section in shown if section["rows"] or section["figures"] or section["text"]]
    environment = Environment(autoescape=True, trim_blocks=True)
    environment.filters["shown"] = _shown
    return environment.from_string(_TEMPLATE).render(title=title, sections=shown, colors=_COLORS)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return number(value)
    return "" if value is None else str(value)
