"""Charts as SVG without scripts: lines over the steps, points, bars, and a matrix of counts.

Colors and fonts come from the page (`trainer.report.template`): a series has the class `s0`, `s1`, ...
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from trainer.display import displayable, shorten_apart

WIDTH, HEIGHT = 480, 250
"""Size of a chart in units of its own; the page scales it."""

NUM_COLORS = 8
"""Colors of series. More series repeat them with dashes."""

_TOP, _RIGHT, _BOTTOM = 30, 16, 40
_DIGIT = 9.0
"""Width of a character at the largest font size, for the space that labels need."""

_MAX_POINTS = 400
_LOG_RATIO = 100.0
"""An axis that may be logarithmic is so if the largest value is at least this many times the smallest."""

_LOG_SCALE = "log scale"
_MAX_DECADES = 6
_LARGEST = 1e150


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: Its name.
        points: x -> y; values that are not finite are left out.
        series: The number of its color.
        is_faint: Draw it thin, behind the others.
        has_dots: Mark each point.
    """

    name: str
    points: Mapping[int, float]
    series: int = 0
    is_faint: bool = False
    has_dots: bool = False

    @property
    def css(self) -> str:
        """Its classes in the style sheet."""
        dashes = " dashed" if self.series >= NUM_COLORS else ""
        return f"s{self.series % NUM_COLORS}{dashes}{' faint' if self.is_faint else ''}"


@dataclass(frozen=True)
class Axis:
    """The range of an axis.

    Attributes:
        title: What it shows, with its unit.
        low, high: Its ends.
        ticks: The places of its labels.
        is_logarithmic: Equal distances are equal ratios.
    """

    title: str
    low: float
    high: float
    ticks: tuple[float, ...]
    is_logarithmic: bool = False

    def share(self, value: float) -> float:
        """Return the place of a value, from 0 at the low end to 1 at the high end."""
        scale = math.log10 if self.is_logarithmic else float
        low, high = scale(self.low), scale(self.high)
        return min(1.0, max(0.0, (scale(value) - low) / (high - low)))

    def labels(self) -> list[str]:
        """Return the label of each tick."""
        labels = [format_tick(tick) for tick in self.ticks]
        return labels if len({*labels}) == len(labels) else [f"{tick:.12g}" for tick in self.ticks]


def fit_axis(
    title: str,
    values: Iterable[float],
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    may_be_logarithmic: bool = False,
) -> Axis:
    """Return an axis with round ends that shows all values.

    Args:
        title: What it shows, with its unit.
        values: Finite values, at least one.
        bounds: The smallest and the largest possible value; the axis does not go beyond them.
        may_be_logarithmic: Make it logarithmic if the values are positive and far apart; the title then says so.
    """
    # Differences of larger values, and steps between smaller ones, are no floats.
    values = [min(max(value, -_LARGEST), _LARGEST) for value in values]
    low, high = min(values), max(values)
    if may_be_logarithmic and low > 0 and high / low >= _LOG_RATIO:
        return _fit_logarithmic(title, low, high)
    smallest, largest = (max(bounds[0], 0.0) if low >= 0 else bounds[0]), bounds[1]
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1 / _LARGEST):  # a constant, up to rounding
        margin = abs(low) / 10 if abs(low) > 10 / _LARGEST else 0.5
        low, high = max(smallest, low - margin), min(largest, high + margin)
    step = _round_step((high - low) / 4)
    low, high = _multiple(math.floor(low / step + 1e-9), step), _multiple(math.ceil(high / step - 1e-9), step)
    low, high = max(smallest, low), min(largest, high)
    return Axis(title, low, high, tuple(place_ticks(low, high, step)))


def _fit_logarithmic(title: str, low: float, high: float) -> Axis:
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    every = -(-(last - first) // _MAX_DECADES)
    ticks = tuple(10.0**power for power in range(first, last + 1, every))
    return Axis(f"{title}, {_LOG_SCALE}", 10.0**first, 10.0**last, ticks, is_logarithmic=True)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))


def place_ticks(low: float, high: float, step: float) -> list[float]:
    """Return the multiples of `step` from `low` to `high`."""
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [_multiple(index, step) for index in range(first, last + 1)]


def _multiple(index: int, step: float) -> float:
    return float(f"{index * step:.12g}")


def format_tick(value: float) -> str:
    """Return a short label: 0.25, 40k, 3M, 1e-06."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= (10_000 if size == 1e3 else size) and abs(value) < 1e15:
            return f"{value / size:.6g}{letter}"
    return f"{value:.6g}"


class _Frame:
    """The two axes of a chart, and the places of points between them."""

    def __init__(self, x: Axis, y: Axis) -> None:
        self.x, self.y = x, y
        self.left = 14 + _DIGIT * max(map(len, y.labels()))

    def at(self, x: float, y: float) -> tuple[float, float]:
        width, height = WIDTH - self.left - _RIGHT, HEIGHT - _TOP - _BOTTOM
        return self.left + self.x.share(x) * width, HEIGHT - _BOTTOM - self.y.share(y) * height

    def draw(self, content: Iterable[str], description: str, *, is_titled: bool = False) -> str:
        """Return the chart with its axes behind the content; `is_titled` leaves out what the y axis shows."""
        y_title = self.y.title if not is_titled else _LOG_SCALE if self.y.is_logarithmic else ""
        corner = f'x="{WIDTH - _RIGHT}" y="{HEIGHT - 4}" text-anchor="end"'
        parts = [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text_of(description)}">',
            *([f'<text class="axis" x="0" y="14">{text_of(y_title)}</text>'] if y_title else []),
            f'<text class="axis" {corner}>{text_of(self.x.title)}</text>',
        ]
        for tick, label in zip(self.y.ticks, self.y.labels(), strict=True):
            _, y = self.at(self.x.low, tick)
            parts.append(f'<line class="grid" x1="{self.left:.1f}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{self.left - 7:.1f}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        for tick, label in zip(self.x.ticks, self.x.labels(), strict=True):
            x, bottom = self.at(tick, self.y.low)
            # A label at the right end would be cut off in the middle.
            near_end = x + _DIGIT * len(label) / 2 > WIDTH
            place = f'x="{WIDTH if near_end else x:.1f}" text-anchor="{"end" if near_end else "middle"}"'
            parts.append(f'<text {place} y="{bottom + 18:.1f}">{label}</text>')
        return "".join([*parts, *content, "</svg>"])


def text_of(text: str) -> str:
    """Return a text for HTML: displayable and escaped."""
    return escape(displayable(text, keep_lines=False))


def draw_lines(
    lines: Sequence[Line],
    y_title: str,
    *,
    x_title: str = "step",
    bounds: tuple[float, float] = (-math.inf, math.inf),
    may_be_logarithmic: bool = False,
    from_zero: bool = False,
    mark: tuple[int, str] | None = None,
    is_titled: bool = False,
) -> str:
    """Return a chart of lines; "" without finite values.

    Args:
        lines: The lines.
        y_title: What the values are, with their unit.
        x_title: What the positions are.
        bounds: The smallest and the largest possible value.
        may_be_logarithmic: See `fit_axis`.
        from_zero: Show 0 too.
        mark: A position to mark, and what it is.
        is_titled: The heading of the chart says what the values are, so the y axis does not.
    """
    kept = [(line, sorted((x, y) for x, y in line.points.items() if math.isfinite(y))) for line in lines]
    kept = [(line, _thin_out(points)) for line, points in kept if points]
    if not kept:
        return ""
    positions = [float(x) for _, points in kept for x, _ in points]
    # Steps start at 0 unless the first one is far from it.
    start = [] if min(positions) > max(positions) / 2 else [0.0]
    values = [y for _, points in kept for _, y in points] + [0.0] * from_zero
    y_axis = fit_axis(y_title, values, bounds=bounds, may_be_logarithmic=may_be_logarithmic)
    frame = _Frame(_fit_steps(x_title, positions + start), y_axis)
    drawn = [_draw_line(frame, line, points) for line, points in sorted(kept, key=lambda each: not each[0].is_faint)]
    names = ", ".join(line.name for line, _ in kept)
    return frame.draw(
        [*_draw_mark(frame, mark), *drawn], f"{y_axis.title} over {x_title}: {names}", is_titled=is_titled
    )


def _fit_steps(title: str, positions: Sequence[float]) -> Axis:
    """Return an axis that ends at the last step, with whole numbers as labels."""
    axis = fit_axis(title, positions)
    low, high = min(positions), max(positions)
    if low == high:
        return axis
    return Axis(title, low, high, tuple(tick for tick in axis.ticks if low <= tick <= high and tick.is_integer()))


def _draw_line(frame: _Frame, line: Line, points: Sequence[tuple[int, float]]) -> str:
    places = [frame.at(x, y) for x, y in points]
    name = text_of(line.name)
    parts = [f'<g class="{line.css}"><title>{name}</title>']
    if len(points) > 1:
        parts.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
    if line.has_dots or len(points) == 1:
        parts += [
            f'<circle cx="{left:.1f}" cy="{top:.1f}" r="3"><title>{name}, {text_of(frame.x.title)} {x}: {y:.5g}</title>'
            "</circle>"
            for (x, y), (left, top) in zip(points, places, strict=True)
        ]
    return "".join([*parts, "</g>"])


def _draw_mark(frame: _Frame, mark: tuple[int, str] | None) -> list[str]:
    if mark is None or not frame.x.low <= mark[0] <= frame.x.high:
        return []
    x, bottom = frame.at(mark[0], frame.y.low)
    is_right = x > WIDTH / 2
    place = f'x="{x - 5 if is_right else x + 5:.1f}" text-anchor="{"end" if is_right else "start"}"'
    return [
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{bottom:.1f}"/>',
        f'<text class="axis" {place} y="{_TOP - 8}">{text_of(mark[1])}</text>',
    ]


def draw_points(
    points: Sequence[tuple[float, float]],
    x_title: str,
    y_title: str,
    *,
    reference: str | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> str:
    """Return a chart of points; "" without points.

    Args:
        points: Finite x and y.
        x_title, y_title: What they are.
        reference: `equal` draws the line x = y and gives both axes one range, `zero` the line y = 0.
        bounds: The smallest and the largest possible value of both.
    """
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if reference == "equal":
        xs, ys = xs + ys, xs + ys
    extra = [0.0] if reference == "zero" else []
    x_axis, y_axis = fit_axis(x_title, xs, bounds=bounds), fit_axis(y_title, ys + extra, bounds=bounds)
    frame = _Frame(x_axis, y_axis)
    ends = (x_axis.low, x_axis.high)
    content = []
    if reference is not None:
        (x1, y1), (x2, y2) = (frame.at(x, x if reference == "equal" else 0.0) for x in ends)
        content.append(f'<line class="mark" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>')
    dots = (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in (frame.at(*point) for point in points))
    content.append(f'<g class="s0 points">{"".join(dots)}</g>')
    return frame.draw(content, f"{y_title} against {x_title}")


def draw_bars(
    bars: Sequence[tuple[float, float, float]],
    x_title: str,
    y_title: str,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    x_bounds: tuple[float, float] | None = None,
    diagonal: bool = False,
) -> str:
    """Return a chart of bars; "" without bars.

    Args:
        bars: The left and right end and the height of each.
        x_title, y_title: What they are.
        bounds: The smallest and the largest possible height.
        x_bounds: The ends of the x axis, unless the bars are.
        diagonal: Draw the line x = y.
    """
    if not bars:
        return ""
    edges = [edge for left, right, _ in bars for edge in (left, right)]
    edges += x_bounds or ()
    heights = [0.0, *(height for _, _, height in bars), *((1.0,) if diagonal else ())]
    frame = _Frame(fit_axis(x_title, edges), fit_axis(y_title, heights, bounds=bounds))
    content = ['<g class="s0 bars">']
    for left, right, height in (bar for bar in bars if bar[2]):
        (x1, top), (x2, bottom) = frame.at(left, height), frame.at(right, 0.0)
        size = f'width="{max(1.0, x2 - x1 - 1):.1f}" height="{max(0.0, bottom - top):.1f}"'
        title = f"{left:.4g} to {right:.4g}: {height:.4g}"
        content.append(f'<rect x="{x1 + 0.5:.1f}" y="{top:.1f}" {size}><title>{title}</title></rect>')
    content.append("</g>")
    if diagonal:
        (x1, y1), (x2, y2) = frame.at(0.0, 0.0), frame.at(1.0, 1.0)
        content.append(f'<line class="mark" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>')
    return frame.draw(content, f"{y_title} by {x_title}")


def draw_matrix(names: Sequence[str], counts: Sequence[Sequence[int]], row_title: str, column_title: str) -> str:
    """Return a matrix of counts: right answers on its diagonal, each cell as dark as its share of its row.

    Args:
        names: The classes, of rows and columns.
        counts: The count of each row and column.
        row_title, column_title: What they are.
    """
    shown = shorten_apart(names, 16)
    is_short = max(map(len, shown)) <= 2  # such as digits, which fit above their columns without being turned
    size = max(22, min(64, 420 // len(names)))
    label = 8 + 7.5 * max(map(len, shown))
    left, top = max(76.0, label + 20), label + 28
    width, height = left + size * len(names) + 8, top + size * len(names) + 8
    parts = [
        f'<svg class="matrix" style="min-width:{0.9 * width:.0f}px;max-width:{width:.0f}px"'
        f' viewBox="0 0 {width:.0f} {height:.0f}" role="img"'
        f' aria-label="{text_of(row_title)} by {text_of(column_title)}">',
        f'<text class="axis" x="{left:.0f}" y="13">{text_of(column_title)} →</text>',
        f'<text class="axis" x="0" y="{top - 8:.0f}">{text_of(row_title)} ↓</text>',
    ]
    for number, (name, short) in enumerate(zip(names, shown, strict=True)):
        middle = size * (number + 0.5) + 4
        title = f"<title>{text_of(name)}</title>{text_of(short)}"
        parts.append(f'<text x="{left - 7:.1f}" y="{top + middle:.1f}" text-anchor="end">{title}</text>')
        place = f"translate({left + middle:.1f} {top - 6:.1f})"
        turn = ' text-anchor="middle"' if is_short else ""
        parts.append(f'<text transform="{place}{"" if is_short else " rotate(-90)"}"{turn}>{title}</text>')
    for row, line in enumerate(counts):
        for column, count in enumerate(line):
            share = count / max(1, sum(line))
            title = f"{text_of(names[row])} → {text_of(names[column])}: {count} ({100 * share:.1f}%)"
            cell = _draw_cell(left + size * column, top + size * row, size, count, share, is_right=row == column)
            parts.append(f'<g class="{"right" if row == column else "wrong"}"><title>{title}</title>{cell}</g>')
    return "".join([*parts, "</svg>"])


def _draw_cell(x: float, y: float, size: int, count: int, share: float, *, is_right: bool) -> str:
    # The root makes rare errors visible; the text is readable on the darkest cell.
    opacity = 0.04 + 0.58 * (share if is_right else math.sqrt(share))
    place = f'x="{x:.1f}" y="{y:.1f}" width="{size - 1}" height="{size - 1}"'
    cell = f'<rect {place} fill-opacity="{opacity:.3f}"/>'
    if not count:
        return cell
    middle = f'x="{x + size / 2:.1f}" y="{y + size / 2 + 4:.1f}" text-anchor="middle"'
    return f"{cell}<text {middle}>{format_tick(count)}</text>"


def _thin_out(line: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most 400 evenly spaced points, including both ends."""
    if len(line) <= _MAX_POINTS:
        return line
    return [line[round(index * (len(line) - 1) / (_MAX_POINTS - 1))] for index in range(_MAX_POINTS)]
