import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.support.jobs import checkpoint_files, events, train, working_in, write_data
from trainer.builders.range_test import RangeTest, rising_lr, smooth, steepest_lr
from trainer.cli import main
from trainer.errors import ConfigError


@pytest.fixture
def data(tmp_path: Path) -> Iterator[list[str]]:
    with working_in(tmp_path):
        yield [*write_data(tmp_path), "train.duration=6"]


def curve_of(losses: list[float]) -> RangeTest:
    return RangeTest([rising_lr(step) for step in range(len(losses))], losses, smooth(losses))


def test_learning_rate_rises_by_a_constant_factor() -> None:
    assert rising_lr(0) == 1e-6
    assert rising_lr(99) == pytest.approx(10, rel=1e-12)
    factors = [rising_lr(step + 1) / rising_lr(step) for step in range(99)]
    assert max(factors) == pytest.approx(min(factors), rel=1e-9)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_smoothed_loss_is_the_weighted_mean(losses: list[float]) -> None:
    weights = [0.9 ** (len(losses) - 1 - step) for step in range(len(losses))]
    expected = math.fsum(w * x for w, x in zip(weights, losses, strict=True)) / math.fsum(weights)

    assert smooth(losses)[-1] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_steepest_fall_before_the_minimum_is_selected() -> None:
    # Flat, then a fall that is steepest half-way, then a rise.
    losses = [1 / (1 + math.exp((step - 50) / 3)) + max(0.0, step - 75) for step in range(85)]
    chosen = steepest_lr(curve_of(losses))

    # The average lags behind by a few steps.
    assert rising_lr(48) < chosen < rising_lr(62)


@pytest.mark.parametrize("losses", [[], [1.0], [float(step) for step in range(50)], [3.0, 2.0, 9.0, 99.0]])
def test_a_loss_that_never_falls_is_an_error(losses: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lr: no learning rate lowered the loss, got 'auto'"):
        steepest_lr(curve_of(losses))


def test_a_run_measures_its_learning_rate_once(data: list[str], tmp_path: Path) -> None:
    arguments = [*data, "optimizer.lr=auto", "run.name=measured", "resume=auto"]
    assert train(tmp_path / "run", *arguments) == 0

    curve = json.loads((tmp_path / "run/lr_range.json").read_text())
    lr = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["optimizer"]["lr"]
    assert lr == pytest.approx(steepest_lr(RangeTest(**curve)), rel=0.05)
    assert len(curve["lr"]) == len(curve["loss"]) == len(curve["smoothed"]) > 10
    # The run is the one that this number gives: the measurement leaves nothing behind.
    assert train(tmp_path / "given", *data, f"optimizer.lr={lr}") == 0
    assert checkpoint_files(tmp_path / "run", 6) == checkpoint_files(tmp_path / "given", 6)

    # A resumed run keeps the learning rate that was measured.
    before = len(events(tmp_path / "run"))
    assert train(tmp_path / "run", *arguments) == 0
    assert [event["event"] for event in events(tmp_path / "run")[before:]] != []
    assert main(["train", f"resume={tmp_path / 'run'}", "logger.console=none"]) == 0
