from collections.abc import Callable, Mapping
from itertools import groupby

import pytest
import torch
from torch import Tensor

import trainer.export.timing
from trainer.export.cases import Forward, Sizes
from trainer.export.timing import Timing, measure


class Clock:
    """Time that passes only while a model runs, and while nothing does."""

    def __init__(self) -> None:
        self.now = self.ran = 0.0
        self.calls: list[tuple[str, int]] = []

    def sleep(self, seconds: float) -> None:
        self.calls.append(("pause", 0))
        self.now += seconds

    def model(self, name: str, seconds: Callable[[int], float], running: float = 1.0) -> Forward:
        """Takes `seconds` of the batch size, and runs for a share of them."""

        def forward(inputs: Mapping[str, Tensor]) -> Tensor:
            self.calls.append((name, len(inputs["x"])))
            duration = seconds(len(inputs["x"]))
            self.now += duration
            self.ran += running * duration
            return inputs["x"]

        return forward


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(trainer.export.timing, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(trainer.export.timing, "thread_time", lambda: clock.ran)
    monkeypatch.setattr(trainer.export.timing, "sleep", clock.sleep)
    return clock


def inputs_of(*sizes: int) -> list[tuple[Sizes, dict[str, Tensor]]]:
    return [({"batch": size}, {"x": torch.zeros(size)}) for size in sizes]


def test_models_take_turns_at_every_shape_smallest_first(clock: Clock) -> None:
    models = {"pytorch": clock.model("pytorch", lambda size: 0.2 * size), "onnx": clock.model("onnx", lambda _: 0.1)}
    rows = measure(models, inputs_of(8, 1), seconds=30.0)
    assert [row.sizes for row in rows] == [{"batch": 1}, {"batch": 8}]
    assert rows[0].milliseconds == pytest.approx({"pytorch": 200.0, "onnx": 100.0})
    assert rows[1].milliseconds == pytest.approx({"pytorch": 1600.0, "onnx": 100.0})
    turns = [(name, len(list(calls))) for name, calls in groupby(name for name, _ in clock.calls[4:])]
    assert turns[:4] == [("pause", 1), ("pytorch", 2), ("pause", 1), ("onnx", 2)]
    assert 23.0 < clock.now <= 30.0


def test_first_calls_of_a_turn_are_not_timed(clock: Clock) -> None:
    """A model that is slow in the first calls after a pause, as idle threads are."""
    slow = iter([])

    def seconds(size: int) -> float:
        nonlocal slow
        if clock.calls[-2:-1] == [("pause", 0)]:
            slow = iter([0.015] * 2)
        return next(slow, 0.001)

    (row,) = measure({"pytorch": clock.model("pytorch", seconds)}, inputs_of(1), seconds=1.0)
    assert row.milliseconds["pytorch"] == pytest.approx(1.0)
    assert len(clock.calls) > 100


def test_every_shape_of_quick_models_is_timed(clock: Clock) -> None:
    models = {name: clock.model(name, lambda _: 0.0002) for name in "abcdef"}
    shapes = inputs_of(*range(1, 7))
    assert len(measure(models, shapes, seconds=1.2 * len(models))) == len(shapes)
    assert clock.now < 1.3 * len(models)


def test_shape_that_would_take_too_long_is_skipped(clock: Clock) -> None:
    model = clock.model("pytorch", lambda size: 0.1 * size)
    rows = measure({"pytorch": model}, inputs_of(1, 4, 100), seconds=6.0)
    assert [row.sizes for row in rows] == [{"batch": 1}, {"batch": 4}]
    assert clock.now < 6.0


def test_first_shape_is_always_timed(clock: Clock) -> None:
    rows = measure({"pytorch": clock.model("pytorch", lambda _: 1.0)}, inputs_of(2, 3), seconds=0.0)
    assert [row.sizes for row in rows] == [{"batch": 2}]
    calls = [name for name, _ in clock.calls]
    turn = ["pause", "pytorch", "pytorch"]  # the first call of a turn is not timed
    assert calls == ["pytorch", "pytorch", *turn, *turn]


@pytest.mark.parametrize(("running", "disturbed"), [(0.9, False), (0.5, True)])
def test_latencies_of_a_thread_that_had_to_wait_are_disturbed(clock: Clock, running: float, disturbed: bool) -> None:
    models = {"pytorch": clock.model("pytorch", lambda _: 0.001), "onnx": clock.model("onnx", lambda _: 0.001, running)}
    (row,) = measure(models, inputs_of(1), seconds=2.0)
    assert row.disturbed == disturbed


@pytest.mark.parametrize(("period", "disturbed"), [(12, False), (3, True)])
def test_latencies_that_differ_between_turns_are_disturbed(clock: Clock, period: int, disturbed: bool) -> None:
    """Every third turn is slow, or every twelfth, which the median does not show."""

    def seconds(_: int) -> float:
        turn = sum(name == "pause" for name, _ in clock.calls)
        return 0.003 if turn % period == 0 else 0.001

    (row,) = measure({"pytorch": clock.model("pytorch", seconds)}, inputs_of(1), seconds=3.0)
    assert row.disturbed == disturbed


def test_speedup() -> None:
    row = Timing({"batch": 1}, {"pytorch": 6.0, "onnx": 2.0})
    assert row.speedup("onnx") == 3.0
    assert row.speedup("pytorch") == 1.0
