"""The HTML page: one file that loads and runs nothing, whose colors can be read."""

import re

import pytest

from tests.support.pages import check_page
from trainer.report.charts import Line, draw_lines, draw_matrix
from trainer.report.page import Figure, Page, Section, Table, Tile, render_page
from trainer.report.template import STYLE


def page(*sections: Section, title: str = "a run") -> Page:
    return Page(title, "data files", "Good.", [Tile("Accuracy", "0.9", "of 1")], sections)


def test_page_is_well_formed_and_refers_to_nothing() -> None:
    chart = draw_lines([Line("raw", {0: 1.0, 1: 2.0}), Line("ema", {0: 1.0}, 1)], "loss")
    text = render_page(
        page(
            Section("Rows", tables=[Table("table", ["key", "value"], [["x", 1.5]])]),
            Section("Curves", figures=[Figure("loss", chart, [Line("raw", {}), Line("ema", {}, 1)], "a note")]),
            Section("Text", warnings=["one", "two"], tables=[Table("all", ["key"], [["y"]], is_folded=True)]),
        )
    )
    tags = check_page(text)

    assert {"table", "svg", "details", "figure"} <= tags.seen
    assert "http:" not in text


def test_cells_are_escaped_and_numbers_formatted() -> None:
    hostile = "<script>alert(1)</script>\x1b[31m"
    rows = [[hostile, 0.123456, True, 3, None]]
    figure = Figure(hostile, draw_matrix([hostile], [[1]], hostile, hostile), [Line(hostile, {}), Line(hostile, {})])
    section = Section(hostile, hostile, [Line(hostile, {})], [hostile], [figure], [Table(hostile, [hostile] * 5, rows)])
    text = render_page(Page(hostile, hostile, hostile, [Tile(hostile, hostile, hostile)], [section]))

    check_page(text)
    assert "<script" not in text
    assert "\x1b" not in text
    assert "&lt;script&gt;" in text
    assert '<td class="number">0.1235</td>' in text
    assert ">true</td>" in text


def test_texts_may_be_broken_and_have_their_own_direction_and_wide_charts_scroll() -> None:
    table = Table("names", ["a", "b", "c"], [["x" * 180, "عربي", "short"]])
    matrix = draw_matrix(["a", "b"], [[1, 0], [0, 1]], "target", "prediction")
    text = render_page(page(Section("S", figures=[Figure("M", matrix, can_scroll=True)], tables=[table])))

    assert (
        f'<td class="long">{"x" * 180}</td><td class="whole" dir="auto">عربي</td><td class="whole">short</td>' in text
    )
    assert '<div class="scroll" tabindex="0" role="region" aria-label="M"><svg class="matrix"' in text


def test_empty_sections_figures_and_tables_are_left_out() -> None:
    empty = Section("nothing", "note", figures=[Figure("no values", "")], tables=[Table("no rows", ["column"], [])])
    text = render_page(page(empty))

    assert "nothing" not in text
    assert "no values" not in text
    assert "no rows" not in text


def luminance(color: tuple[float, ...]) -> float:
    """Return the relative luminance of a color (WCAG 2.2)."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def colors_of(text: str) -> list[dict[str, tuple[float, ...]]]:
    """Return the colors of the light and of the dark page by their names."""
    palettes: list[dict[str, tuple[float, ...]]] = []
    for block in re.findall(r":root \{(.*?)\}", text, re.DOTALL):
        found = re.findall(r"--([\w-]+): #(\w\w)(\w\w)(\w\w)", block)
        palette = {name: tuple(int(part, 16) / 255 for part in parts) for name, *parts in found}
        palettes.append({**(palettes[0] if palettes else {}), **palette})
    return palettes


@pytest.mark.parametrize("number", [0, 1], ids=["light", "dark"])
def test_contrast_is_sufficient(number: int) -> None:
    palettes = colors_of(STYLE)
    assert len(palettes) == 2
    colors = palettes[number]
    for text in ("text", "muted", "warning"):
        assert contrast(colors[text], colors["page"]) >= 4.5
        assert contrast(colors[text], colors["panel"]) >= 4.5
    for series in range(8):  # a line needs less than a text
        assert contrast(colors[f"s{series}"], colors["page"]) >= 3
    opacity = max(float(value) for value in re.findall(r'fill-opacity="([\d.]+)"', draw_matrix(["a"], [[1]], "t", "p")))
    for cell in ("right", "wrong"):
        pairs = zip(colors[cell], colors["page"], strict=True)
        mixed = tuple(opacity * over + (1 - opacity) * under for over, under in pairs)
        assert contrast(colors["text"], mixed) >= 4.5


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        ('role="img" aria-label', "role", "svg: svg-img-alt"),
        ('tabindex="0" role="region"', 'role="region"', "div: scrollable-region-focusable"),
        ('scope="col"', "", "th: scope-attr-valid"),
        ('<html lang="en">', "<html>", "html: html-has-lang"),
        ("<h2>S</h2>", "<h2> </h2>", "h2 without a text"),
    ],
)
def test_the_check_of_pages_finds_what_a_screen_reader_cannot_use(right: str, wrong: str, rule: str) -> None:
    svg = draw_matrix(["a"], [[1]], "target", "prediction")
    text = render_page(page(Section("S", figures=[Figure("M", svg)], tables=[Table("t", ["a"], [["x"]])])))
    check_page(text)
    assert right in text
    with pytest.raises(AssertionError, match=re.escape(rule)):
        check_page(text.replace(right, wrong))
