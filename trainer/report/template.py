"""The look of the page: its style sheet and its HTML. Everything is in the one file, and nothing in it is a script."""

from __future__ import annotations

from typing import Final

STYLE: Final = """\
:root {
  color-scheme: light dark;
  --page: #ffffff; --panel: #f5f6f8; --text: #1b222c; --muted: #566070; --rule: #d8dce2;
  --shadow: #b9c0ca; --warning: #8a4b00;
  --s0: #1f66c1; --s1: #c2500f; --s2: #1f7d4a; --s3: #8d3fb0; --s4: #8a6a00;
  --s5: #b82f56; --s6: #0e7680; --s7: #5c636e;
  --right: #2f74c9; --wrong: #d1602a;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --panel: #1b2129; --text: #e8ebf0; --muted: #a5afbd; --rule: #333c48;
    --shadow: #4a5563; --warning: #f0b060;
    --s0: #6aa5f2; --s1: #ef8d54; --s2: #58c08a; --s3: #c68ae6; --s4: #d6b13f;
    --s5: #f07f9e; --s6: #4fc0ca; --s7: #a8b0bb;
    --right: #3a76c4; --wrong: #b9531f;
  }
}
* { box-sizing: border-box }
body { background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; margin: 0 }
main { margin: 0 auto; max-width: 74rem; padding: 2rem 1.5rem 4rem }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere }
h2 { border-top: 1px solid var(--rule); font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-top: 1.25rem }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; overflow-wrap: anywhere }
p { margin: .4rem 0; max-width: 48rem; overflow-wrap: anywhere }
.muted, figcaption small, summary { color: var(--muted) }
.verdict { font-size: 1.05rem; margin: .75rem 0 1.25rem; max-width: 60rem }
.tiles { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 12rem), 1fr)); margin: 0 }
.tiles div { background: var(--panel); border-radius: .5rem; padding: .75rem 1rem }
.tiles dt { color: var(--muted); font-size: .85rem }
.tiles dd { margin: 0; overflow-wrap: anywhere }
.tiles .value { font-size: 1.45rem; font-variant-numeric: tabular-nums; font-weight: 650; line-height: 1.3 }
.tiles .detail { font-size: .85rem }
.figures { display: grid; gap: 1.5rem 2rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)) }
figure { margin: .5rem 0 0; min-width: 0 }
.tall { grid-row: span 2 }
figcaption { font-weight: 600 }
figcaption small { display: block; font-weight: 400 }
svg { display: block; height: auto; width: 100% }
svg text { fill: var(--muted); font: 12px system-ui, sans-serif; font-variant-numeric: tabular-nums }
svg text.axis { font-weight: 600 }
.grid { stroke: var(--rule) } .mark { stroke: var(--muted); stroke-dasharray: 4 3 }
polyline {
  fill: none; stroke: var(--color); stroke-linejoin: round; stroke-width: 2; vector-effect: non-scaling-stroke;
}
circle, .bars rect { fill: var(--color) }
.bars rect { fill-opacity: .7 }
.points circle { fill-opacity: .45 }
.faint polyline { stroke-width: 1.2; stroke-opacity: .75 }
.dashed polyline { stroke-dasharray: 6 3 }
.right rect { fill: var(--right) } .wrong rect { fill: var(--wrong) }
.matrix text { fill: var(--text) }
.matrix text.axis { fill: var(--muted) }
.legend { display: flex; flex-wrap: wrap; font-size: .9rem; gap: .15rem 1.25rem }
.legend { list-style: none; margin: .25rem 0; padding: 0 }
.legend li { overflow-wrap: anywhere }
.legend li::before {
  border-top: 3px solid var(--color); content: ""; display: inline-block; margin-right: .45rem; vertical-align: middle;
  width: 1.4rem;
}
.legend li.dashed::before { border-top-style: dashed }
.legend li.faint::before { border-top-width: 1.5px }
.scroll {
  /* A shadow at a side says that there is more; the color of the page covers it at the end. */
  background:
    linear-gradient(to right, var(--page) 60%, transparent) left / 2.5rem 100% no-repeat local,
    linear-gradient(to left, var(--page) 60%, transparent) right / 2.5rem 100% no-repeat local,
    linear-gradient(to right, var(--shadow), transparent) left / 1rem 100% no-repeat scroll,
    linear-gradient(to left, var(--shadow), transparent) right / 1rem 100% no-repeat scroll;
  overflow-x: auto;
}
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid var(--rule); padding: .3rem 1.1rem .3rem 0; text-align: left; vertical-align: top }
th { color: var(--muted); font-weight: 600; vertical-align: bottom }
th.number, td.number { text-align: right }
td.number, td.whole { white-space: nowrap }
td { max-width: 34rem; overflow-wrap: break-word }
td.long, td .name { min-width: 11rem; overflow-wrap: anywhere }
td .name { display: inline-block }
td .cells { display: flex; flex-wrap: wrap; font-size: .85rem; gap: 0 .9rem; min-width: 16rem }
td details { font-size: .85rem; margin: 0 }
td .cells b { font-weight: 600 }
td img { display: block; height: 4rem; image-rendering: pixelated; width: auto }
details { margin: 1rem 0 }
summary { cursor: pointer; font-weight: 600 }
.sentences { margin: .5rem 0 1rem; max-width: 60rem; padding-left: 1.2rem }
.sentences li { margin: .2rem 0; overflow-wrap: anywhere }
.warnings { color: var(--warning); margin: .5rem 0; overflow-wrap: anywhere; padding-left: 1.2rem }
@media (max-width: 40rem) {
  main { padding: 1.25rem 1rem 3rem }
  h1 { font-size: 1.35rem }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)) }
  .tiles .value { font-size: 1.15rem }
  svg text { font-size: 15px }
  .matrix text { font-size: 12px }
  .tall { grid-row: auto }
  td { max-width: 18rem; min-width: 4rem }
  td.long { min-width: 16rem }
  .stacked thead { display: none }
  .stacked, .stacked tbody, .stacked tr, .stacked td { display: block; width: 100% }
  .stacked tr { border-bottom: 1px solid var(--rule); padding: .6rem 0 }
  .stacked td { border: 0; max-width: none; padding: .1rem 0; text-align: left }
  .stacked td:empty { display: none }
  .stacked td:not(:first-child) { display: inline-block; margin-right: 1.1rem; min-width: 0; width: auto }
  .stacked td:not(:first-child)::before { color: var(--muted); content: attr(data-column) ": " }
  .stacked td .cells { display: inline-flex; min-width: 0 }
}
@media print {
  html { font-size: 10px }
  body { font-size: 1rem }
  main { max-width: none; padding: 0 }
  figure, tr, .tiles div { break-inside: avoid }
  h2, h3 { break-after: avoid }
  .scroll { background: none; overflow: visible }
  .figures { grid-template-columns: repeat(2, minmax(0, 1fr)) }
  .matrix { min-width: 0 !important }
}
"""

TEMPLATE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="trainer">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; \
base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ page.title }}</title>
<style>
{{ style }}\
{% for color in range(num_colors) %}.s{{ color }} { --color: var(--s{{ color }}) }
{% endfor %}
</style>
</head>
<body>
<main>
{% macro legend(lines) %}
<ul class="legend">{% for line in lines %}<li class="{{ line.css }}">{{ line.name }}</li>{% endfor %}</ul>
{% endmacro %}
{% macro table(block) %}
<div class="scroll" tabindex="0" role="region" aria-label="{{ block.title }}">\
<table{% if block.is_stacked %} class="stacked" role="table"{% endif %}>
<thead><tr>{% for column in block.columns %}\
<th scope="col"{% if block.is_number[loop.index0] %} class="number"{% endif %}>\
{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in block.rows %}<tr{% if block.is_stacked %} role="row"{% endif %}>\
{% for cell in row %}<td\
{% if block.is_stacked %} role="cell" data-column="{{ block.columns[loop.index0] | plain }}"{% endif %}\
{{ cell | attributes }}>{{ cell | format_cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
{% endmacro %}
<h1>{{ page.title }}</h1>
<p class="muted">{{ page.subtitle }}</p>
<p class="verdict">{{ page.verdict }}</p>
{% if page.tiles %}<dl class="tiles">
{% for tile in page.tiles %}<div><dt>{{ tile.label }}</dt><dd class="value">{{ tile.value }}</dd>\
<dd class="detail muted">{{ tile.detail }}</dd></div>
{% endfor %}</dl>{% endif %}
{% for section in sections %}
<section>
<h2>{{ section.title }}</h2>
{% if section.note %}<p class="muted">{{ section.note }}</p>{% endif %}
{% if section.sentences %}<ul class="sentences">
{% for line in section.sentences %}<li>{{ line }}</li>
{% endfor %}</ul>{% endif %}
{% if section.legend %}{{ legend(section.legend) }}{% endif %}
{% if section.warnings %}<ul class="warnings">
{% for line in section.warnings %}<li>{{ line }}</li>
{% endfor %}</ul>{% endif %}
{% if section.figures %}<div class="figures">
{% for figure in section.figures %}<figure{% if figure.is_tall %} class="tall"{% endif %}>\
<figcaption>{{ figure.title }}\
{% if figure.note %}<small>{{ figure.note }}</small>{% endif %}</figcaption>
{% if figure.legend %}{{ legend(figure.legend) }}{% endif %}
{% if figure.can_scroll %}<div class="scroll" tabindex="0" role="region" aria-label="{{ figure.title }}">\
{{ figure.svg }}</div>{% else %}{{ figure.svg }}{% endif %}

</figure>
{% endfor %}</div>{% endif %}
{% for block in section.tables %}
{% if block.is_folded %}<details><summary>{{ block.title }}</summary>{{ table(block) }}</details>
{% else %}<h3>{{ block.title }}</h3>
{{ table(block) }}
{% endif %}
{% endfor %}
</section>
{% endfor %}
</main>
</body>
</html>
"""
