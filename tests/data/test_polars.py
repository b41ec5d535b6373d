"""Frames of polars as data: `python -m pytest -m interop`, where polars is installed."""

import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import trainer
from tests.support.jobs import TINY
from trainer.data.frames import to_rows, to_table
from trainer.errors import DataError

pytestmark = pytest.mark.interop

ROWS = [{"text": f"a pear {number % 7}", "label": "xy"[number % 2]} for number in range(40)]


@pytest.fixture
def polars() -> Any:
    import polars

    return polars


def test_frames_of_every_kind_have_the_same_rows(polars: Any) -> None:
    frame = polars.DataFrame(ROWS)
    label = polars.col("label")
    for other in (
        frame,
        frame.with_columns(label.cast(polars.Categorical)),
        frame.with_columns(label.cast(polars.Enum(["y", "x"]))),
        polars.concat([frame[:10], frame[10:]], rechunk=False),
        frame.lazy().collect(),
    ):
        assert to_rows("data", other) == ROWS
        assert to_table("data", other).equals(to_table("data", pd.DataFrame(ROWS)))


def test_cells_of_every_type_are_read(polars: Any) -> None:
    day, moment = datetime.date(2024, 1, 2), datetime.datetime(2024, 1, 2, 3)
    row = {"number": 1.5, "whole": 3, "flag": True, "day": day, "moment": moment, "list": ["a", "b"], "bytes": b"x"}
    frame = polars.DataFrame([row, dict.fromkeys(row)])
    assert to_rows("data", frame) == [row, dict.fromkeys(row)]
    assert to_rows("data", polars.DataFrame({"a": [float("nan"), 1.0]})) == [{"a": None}, {"a": 1.0}]


def test_what_is_no_table_is_reported(polars: Any) -> None:
    frame = polars.DataFrame(ROWS)
    objects = polars.DataFrame({"a": polars.Series([object()], dtype=polars.Object)})
    for data, message in (
        (frame.lazy(), "data: is not one table, got 'LazyFrame'. Pass the result of collect()."),
        (frame["text"], "data: is not one table, got 'Series'. Pass a data frame"),
        (frame[:0], "data: has no rows"),
        (objects, "data: a column cannot be read ('a' contains Python objects)"),
    ):
        with pytest.raises(DataError) as caught:
            to_table("data", data)
        assert str(caught.value).startswith(message)


def test_a_run_on_a_frame_equals_the_run_on_pandas(
    polars: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ours = trainer.train(*TINY, "train.duration=4", "run.dir=polars", data=polars.DataFrame(ROWS), verbose=False)
    theirs = trainer.train(*TINY, "train.duration=4", "run.dir=pandas", data=pd.DataFrame(ROWS), verbose=False)
    assert ours.metrics == theirs.metrics
    assert (tmp_path / "polars/data/train.parquet").read_bytes() == (
        tmp_path / "pandas/data/train.parquet"
    ).read_bytes()
    assert ours.predict(polars.DataFrame(ROWS[:3])) == ours.predict(ROWS[:3])
