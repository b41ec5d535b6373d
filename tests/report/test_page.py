"""The HTML page and its curves."""

import math
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.report.page import HEIGHT, WIDTH, Section, draw_curves, place_ticks, render_page


class Tags(HTMLParser):
    """The tags of a page and the addresses that they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.references: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.references += [str(value) for name, value in attributes if name in ("src", "href", "onload")]
        if tag not in ("meta",) and tag not in ("line",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_well_formed_and_refers_to_nothing() -> None:
    text = render_page(
        "a run",
        [
            Section("table", ["key", "value"], [["x", 1.5], ["y", None]], highlighted=frozenset({"x"})),
            Section("curves", figures={"loss": {"raw": {0: 1.0, 1: 2.0}, "ema": {0: 1.0}}, "empty": {"raw": {}}}),
            Section("text", text="one\ntwo"),
        ],
    )
    tags = Tags(text)

    assert tags.open == []
    assert {"table", "svg", "pre", "figure"} <= tags.seen
    assert not {"script", "link", "img", "iframe"} & tags.seen
    assert tags.references == []
    assert "url(" not in text
    assert "http" not in text


def test_cells_are_escaped_and_numbers_formatted() -> None:
    text = render_page("<i>", [Section("rows", ["k"], [["<script>", 0.123456, True, 3]])])

    assert "<i>" not in text
    assert "&lt;script&gt;" in text
    assert '<td class="number">0.1235</td>' in text
    assert "true" in text


def test_empty_sections_and_figures_are_left_out() -> None:
    text = render_page("a run", [Section("nothing", ["column"]), Section("no values", figures={"loss": {"x": {}}})])

    assert "nothing" not in text
    assert "no values" not in text


numbers = st.floats(-1e6, 1e6)


def points(svg: str) -> list[list[tuple[float, float]]]:
    lines = ElementTree.fromstring(svg).iter("polyline")
    return [
        [(float(x), float(y)) for x, y in (at.split(",") for at in line.attrib["points"].split())] for line in lines
    ]


def test_line_goes_through_its_points() -> None:
    svg = draw_curves({"loss": {0: 1.0, 10: 0.0, 20: 0.5}})
    ((first, middle, last),) = points(svg)

    assert (first[1], middle[1], last[1]) == (10.0, HEIGHT - 24.0, pytest.approx((10 + HEIGHT - 24) / 2))
    assert (first[0], middle[0], last[0]) == (58.0, pytest.approx((58 + WIDTH - 10) / 2), WIDTH - 10.0)
    assert "<title>loss</title>" in svg


def test_axis_is_logarithmic_for_values_far_apart() -> None:
    ((_, middle, _),) = points(draw_curves({"loss": {0: 1000.0, 1: 10.0, 2: 0.1}}))
    assert middle[1] == pytest.approx((10 + HEIGHT - 24) / 2)
    ((_, middle, _),) = points(draw_curves({"loss": {0: 1000.0, 1: 10.0, 2: 0.0}}))
    assert middle[1] > 200


def test_names_are_escaped_and_non_finite_values_left_out() -> None:
    svg = draw_curves({"<b>": {0: 1.0, 1: math.nan, 2: 3.0}, "one": {1: 2.0}, "none": {0: math.inf}})

    assert "&lt;b&gt;" in svg
    assert [len(line) for line in points(svg)] == [2, 0]
    assert len(list(ElementTree.fromstring(svg).iter("circle"))) == 1
    assert draw_curves({"loss": {0: math.nan}}) == draw_curves({}) == ""


def test_long_lines_are_thinned_and_keep_their_ends() -> None:
    (line,) = points(draw_curves({"loss": {step: float(step) for step in range(5000)}}))

    assert len(line) == 400
    assert (line[0], line[-1]) == ((58.0, HEIGHT - 24.0), (WIDTH - 10.0, 10.0))


@given(st.dictionaries(st.integers(0, 10**6), numbers, min_size=1, max_size=5))
def test_all_points_are_inside_the_figure(values: dict[int, float]) -> None:
    for line in points(draw_curves({"x": values})):
        assert all(58 <= x <= WIDTH - 10 and 10 <= y <= HEIGHT - 24 for x, y in line)


@given(numbers, st.floats(1e-6, 1e6))
def test_ticks_are_round_and_few(low: float, width: float) -> None:
    placed = place_ticks(low, low + width)

    assert 2 <= len(placed) <= 6
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in placed)
    assert place_ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
