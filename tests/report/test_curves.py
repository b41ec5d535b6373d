import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.report.curves import HEIGHT, WIDTH, curves, ticks

numbers = st.floats(-1e6, 1e6)


def points(svg: str) -> list[list[tuple[float, float]]]:
    lines = ElementTree.fromstring(svg).iter("polyline")
    return [
        [(float(x), float(y)) for x, y in (at.split(",") for at in line.attrib["points"].split())] for line in lines
    ]


def test_a_line_goes_through_its_points() -> None:
    svg = curves({"loss": {0: 1.0, 10: 0.0, 20: 0.5}})
    ((first, middle, last),) = points(svg)

    assert (first[1], middle[1], last[1]) == (10.0, HEIGHT - 24.0, pytest.approx((10 + HEIGHT - 24) / 2))
    assert (first[0], middle[0], last[0]) == (58.0, pytest.approx((58 + WIDTH - 10) / 2), WIDTH - 10.0)
    assert "<title>loss</title>" in svg


def test_values_far_apart_have_a_logarithmic_axis() -> None:
    ((_, middle, _),) = points(curves({"loss": {0: 1000.0, 1: 10.0, 2: 0.1}}))
    assert middle[1] == pytest.approx((10 + HEIGHT - 24) / 2)
    ((_, middle, _),) = points(curves({"loss": {0: 1000.0, 1: 10.0, 2: 0.0}}))
    assert middle[1] > 200


def test_names_are_escaped_and_what_is_not_finite_is_left_out() -> None:
    svg = curves({"<b>": {0: 1.0, 1: math.nan, 2: 3.0}, "one": {1: 2.0}, "none": {0: math.inf}})

    assert "&lt;b&gt;" in svg
    assert [len(line) for line in points(svg)] == [2, 0]
    assert len(list(ElementTree.fromstring(svg).iter("circle"))) == 1
    assert curves({"loss": {0: math.nan}}) == curves({}) == ""


def test_long_lines_are_thinned_and_keep_their_ends() -> None:
    (line,) = points(curves({"loss": {step: float(step) for step in range(5000)}}))

    assert len(line) == 400
    assert (line[0], line[-1]) == ((58.0, HEIGHT - 24.0), (WIDTH - 10.0, 10.0))


@given(st.dictionaries(st.integers(0, 10**6), numbers, min_size=1, max_size=5))
def test_everything_lies_inside(values: dict[int, float]) -> None:
    for line in points(curves({"x": values})):
        assert all(58 <= x <= WIDTH - 10 and 10 <= y <= HEIGHT - 24 for x, y in line)


@given(numbers, st.floats(1e-6, 1e6))
def test_ticks_are_round_and_few(low: float, width: float) -> None:
    found = ticks(low, low + width)

    assert 2 <= len(found) <= 6
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in found)
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
