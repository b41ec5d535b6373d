"""Charts: every value is inside of its axes, every label inside of its chart."""

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.report.charts import (
    HEIGHT,
    WIDTH,
    Line,
    draw_bars,
    draw_lines,
    draw_matrix,
    draw_points,
    fit_axis,
    format_tick,
)

values = st.floats(allow_nan=False, allow_infinity=False)


def polylines(svg: str) -> list[list[tuple[float, float]]]:
    lines = ElementTree.fromstring(svg).iter("polyline")
    return [
        [(float(x), float(y)) for x, y in (at.split(",") for at in line.attrib["points"].split())] for line in lines
    ]


def labels(svg: str) -> list[tuple[str, float, float]]:
    """Return each text with its left and right end, as wide as digits are at the largest font size of the page."""
    found = []
    for node in ElementTree.fromstring(svg).iter("text"):
        text, x = node.text or "", float(node.attrib["x"])
        width = 8.5 * len(text)
        anchor = node.attrib.get("text-anchor", "start")
        left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        found.append((text, left, left + width))
    return found


def test_line_goes_through_its_points_and_the_best_step_is_marked() -> None:
    points = {0: 1.0, 10: 0.0, 20: 0.5}
    svg = draw_lines([Line("validation", points, has_dots=True)], "loss", mark=(10, "best: step 10"))
    ((first, middle, last),) = polylines(svg)

    assert middle[1] > last[1] > first[1]
    assert middle[0] - first[0] == pytest.approx(last[0] - middle[0], abs=0.2)
    assert last[0] == WIDTH - 16
    assert f'class="mark" x1="{middle[0]:.1f}"' in svg
    assert "best: step 10" in svg
    assert "<title>validation, step 10: 0</title>" in svg
    assert 'class="mark"' not in draw_lines([Line("a", points)], "loss", mark=(99, "outside"))


@pytest.mark.parametrize(
    ("numbers", "bounds", "low", "high"),
    [
        ([1.0, 1.0], (0, 1), 0.9, 1.0),
        ([0.75], (0, 1), 0.65, 0.85),
        ([0.0], (0, 1), 0.0, 0.6),
        ([1.0], (-math.inf, math.inf), 0.9, 1.1),
        ([-5.0], (-math.inf, math.inf), -5.5, -4.5),
        ([0.31, 0.92], (0, 1), 0.2, 1.0),
        ([3.0, 47.0], (-math.inf, math.inf), 0.0, 60.0),
    ],
)
def test_range_is_round_and_stays_within_what_is_possible(
    numbers: list[float], bounds: tuple[float, float], low: float, high: float
) -> None:
    axis = fit_axis("accuracy", numbers, bounds=bounds)

    assert (axis.low, axis.high) == (pytest.approx(low, abs=0.05 * high), pytest.approx(high, rel=0.05))
    assert bounds[0] <= axis.low < axis.high <= bounds[1]
    assert len(axis.ticks) >= 3


def test_logarithmic_axis_says_so() -> None:
    line = [Line("a", {0: 1000.0, 1: 10.0, 2: 0.1})]
    svg = draw_lines(line, "loss", may_be_logarithmic=True)
    ((_, middle, _),) = polylines(svg)

    assert "loss, log scale" in svg
    assert {"0.1", "10", "1000"} <= {text for text, _, _ in labels(svg)}
    assert middle[1] == pytest.approx((30 + HEIGHT - 40) / 2, abs=0.1)
    assert "log scale" not in draw_lines(line, "loss")
    assert "log scale" not in draw_lines([Line("a", {0: 10.0, 1: 0.0})], "loss", may_be_logarithmic=True)


@given(st.dictionaries(st.integers(0, 10**9), values, min_size=1, max_size=5), st.booleans())
def test_everything_is_inside_of_the_chart(points: dict[int, float], may_be_logarithmic: bool) -> None:
    svg = draw_lines([Line("x", points)], "loss", may_be_logarithmic=may_be_logarithmic)
    for line in polylines(svg):
        assert all(0 <= x <= WIDTH and 30 <= y <= HEIGHT - 40 for x, y in line)
    shown = labels(svg)
    assert all(left >= 0 for _, left, _ in shown)
    assert all(right <= WIDTH + 8.5 for _, _, right in shown)


@given(values, values)
def test_ticks_are_few_and_different(one: float, other: float) -> None:
    axis = fit_axis("loss", [one, other])
    shown = axis.labels()

    assert 2 <= len(shown) <= 8
    assert len({*shown}) == len(shown)
    assert all(axis.low <= tick <= axis.high or math.isclose(tick, axis.high) for tick in axis.ticks)


def test_values_that_are_not_finite_are_left_out() -> None:
    lines = [Line("<b>", {0: 1.0, 1: math.nan, 2: 3.0}), Line("one", {1: 2.0}), Line("none", {0: math.inf})]
    svg = draw_lines(lines, "loss")

    assert "&lt;b&gt;" in svg
    assert [len(line) for line in polylines(svg)] == [2]
    assert len(list(ElementTree.fromstring(svg).iter("circle"))) == 1
    assert draw_lines([Line("loss", {0: math.nan})], "loss") == draw_lines([], "loss") == ""


def test_long_lines_are_thinned_and_keep_their_ends() -> None:
    (line,) = polylines(draw_lines([Line("loss", {step: float(step) for step in range(5001)})], "loss"))

    assert len(line) == 400
    assert line[0][1] == HEIGHT - 40
    assert line[-1][0] == WIDTH - 16


@pytest.mark.parametrize(("last", "steps"), [(9, ["0", "5"]), (3, ["0", "1", "2", "3"]), (100, ["0", "25", "50"])])
def test_steps_are_whole_numbers(last: int, steps: list[str]) -> None:
    svg = draw_lines([Line("loss", {0: 2.0, last: 7.25})], "loss")
    nodes = ElementTree.fromstring(svg).iter("text")
    shown = [str(node.text) for node in nodes if float(node.attrib["y"]) == HEIGHT - 40 + 18]

    assert shown[: len(steps)] == steps
    assert all(text.isdigit() for text in shown)


def test_twelve_lines_look_different() -> None:
    looks = {Line(str(number), {}, number).css for number in range(12)}

    assert len(looks) == 12


@pytest.mark.parametrize(
    ("value", "label"),
    [(0.25, "0.25"), (40_000, "40k"), (9_500, "9500"), (3e6, "3M"), (1e-6, "1e-06"), (0, "0"), (2.5e9, "2.5G")],
)
def test_labels_are_short(value: float, label: str) -> None:
    assert format_tick(value) == label


def test_points_and_bars_are_inside() -> None:
    points = draw_points([(1.0, 2.0), (5.0, 4.0)], "target", "prediction", reference="equal")
    circles = [
        (float(node.attrib["cx"]), float(node.attrib["cy"])) for node in ElementTree.fromstring(points).iter("circle")
    ]
    line = next(node.attrib for node in ElementTree.fromstring(points).iter("line") if node.attrib["class"] == "mark")
    # The first point is above the line of equal values, the second one below.
    slope = (float(line["y2"]) - float(line["y1"])) / (float(line["x2"]) - float(line["x1"]))
    heights = [y - (float(line["y1"]) + slope * (x - float(line["x1"]))) for x, y in circles]
    assert heights[0] < 0 < heights[1]

    bars = draw_bars([(0.0, 0.5, 0.25), (0.5, 1.0, 0.75)], "confidence", "accuracy", bounds=(0, 1), diagonal=True)
    low, high = (float(node.attrib["height"]) for node in ElementTree.fromstring(bars).iter("rect"))
    assert high == pytest.approx(3 * low, rel=0.01)
    assert draw_bars([], "a", "b") == draw_points([], "a", "b") == ""


@pytest.mark.parametrize(("largest", "shown"), [(2.0, "step"), (2000.0, "log scale step")])
def test_an_axis_does_not_repeat_the_heading(largest: float, shown: str) -> None:
    lines = [Line("raw", {0: 1.0, 10: largest})]
    svg = draw_lines(lines, "loss", may_be_logarithmic=True, is_titled=True)
    titles = [node.text for node in ElementTree.fromstring(svg).iter("text") if node.get("class") == "axis"]

    assert " ".join(map(str, titles)) == shown
    assert "loss" in draw_lines(lines, "loss", is_titled=True).partition(">")[0]


def test_only_long_names_of_a_matrix_are_turned() -> None:
    assert "rotate" not in draw_matrix(["0", "10"], [[1, 0], [0, 1]], "target", "prediction")
    assert draw_matrix(["0", "100"], [[1, 0], [0, 1]], "target", "prediction").count("rotate(-90)") == 2


def test_matrix_shows_counts_and_names_of_any_length() -> None:
    names = ["<script>", "a very long name of a class that nobody reads", "c"]
    svg = draw_matrix(names, [[5, 0, 1], [0, 0, 0], [2, 0, 10]], "target", "prediction")
    root = ElementTree.fromstring(svg)

    assert [node.text for node in root.iter("text") if (node.text or "").isdigit()] == ["5", "1", "2", "10"]
    assert "&lt;script&gt; → c: 1 (16.7%)" in svg
    assert "a very lon…reads" in svg
    width, height = (float(size) for size in root.attrib["viewBox"].split()[2:])
    for cell in root.iter("rect"):
        assert float(cell.attrib["x"]) + float(cell.attrib["width"]) <= width
        assert float(cell.attrib["y"]) + float(cell.attrib["height"]) <= height
    assert re.search(r'class="right"><title>c → c: 10 \(83.3%\)', svg)
