"""Trackers, offline, with the real packages: `python -m pytest -m trackers` where the extras are installed."""

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.jobs import checkpoint_files, stop_at, train, working_in, write_data
from trainer.cli import main
from trainer.config.command import check_command
from trainer.errors import ConfigError
from trainer.observers import Observers
from trainer.protocols import RunView
from trainer.report.trackers import Tracker

NAMES = ("wandb", "mlflow", "swanlab")
SECRET = "hunter2-secret"
JOB = ["train.duration=8", "checkpoint.every=4", "train.eval_every=4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("trackers")
    with working_in(folder):
        yield [*write_data(folder), *JOB]


def tree(folder: Path) -> bytes:
    """Return the names and contents of all files under a folder."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.is_symlink()]
    return b"\n".join(str(file.relative_to(folder)).encode() + b"\n" + file.read_bytes() for file in files)


def test_an_unknown_tracker_is_reported(data: list[str]) -> None:
    with pytest.raises(ConfigError, match="Did you mean mlflow"):
        check_command("train", [*data, "logger.trackers=[mlfow]"])


class Blocking(Tracker):
    """A tracker whose network is gone when the run ends."""

    name = "blocking"

    def __init__(self) -> None:
        super().__init__(offline=False)
        self.answer = threading.Event()

    def open(self, run: RunView, identifier: str | None) -> str:
        return "a"

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        pass

    def finish(self) -> None:
        self.answer.wait()


def test_a_tracker_that_blocks_at_the_end_is_left_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trainer.report.trackers._PATIENCE", 0.1)
    (tmp_path / "run").mkdir()
    tracker = Blocking()
    observers = Observers({"blocking": tracker}, RunView(tmp_path / "run", "run", {}, 8, 1))
    observers.log("start", step=0, epoch=0.0, values={})
    observers.close()  # the tracker gets no answer before it returns
    (record,) = caplog.records
    assert record.getMessage() == (
        "blocking: failed at its end and gets no more events (TimeoutError: no answer for 0 s; the run ends without it)"
    )
    assert [thread.daemon for thread in threading.enumerate() if thread.name.endswith("(call)")] == [True]
    tracker.answer.set()


def test_an_error_at_the_end_of_a_tracker_is_reported(tmp_path: Path) -> None:
    tracker = Blocking()
    tracker.is_open = True
    tracker.finish = lambda: int("x")  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(ValueError, match="invalid literal"):
        tracker.close()


@pytest.mark.trackers
@pytest.mark.filterwarnings("default")  # those of the packages
def test_trackers_offline(data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    plain, tracked = tmp_path / "plain", tmp_path / "runs/tracked"
    secret = ["model.weights_ignore=['token=" + SECRET + "']"]
    assert train(plain, *data, *secret) == 0
    trackers = [f"logger.trackers=[{','.join(NAMES)}]", "logger.offline=true"]
    assert train(tracked, *data, *secret, *trackers) == 0
    assert "gets no more events" not in (tracked / "trainer.log").read_text(encoding="utf-8")
    assert checkpoint_files(tracked, 8) == checkpoint_files(plain, 8)

    written = tree(tmp_path / "runs/trackers")
    assert SECRET.encode() not in written
    assert os.uname().nodename.encode() not in written
    for text in (b"train/loss", b"validation-ema/accuracy", b"test/accuracy", b"tracked"):
        assert text in written

    stop_at(tracked, 4)
    assert main(["train", f"resume={tracked}", *trackers]) == 0
    assert "gets no more events" not in (tracked / "trainer.log").read_text(encoding="utf-8")
    with sqlite3.connect(tmp_path / "runs/trackers/mlflow.db") as database:
        (run,) = database.execute("select name, status from runs").fetchall()
        steps = database.execute("select step from metrics where key = 'train/loss' order by timestamp, step")
        assert run == ("tracked", "FINISHED")
        assert [step for (step,) in steps.fetchall()] == [*range(1, 9), *range(5, 9)]
    database.close()


@pytest.mark.trackers
@pytest.mark.filterwarnings("default")
def test_a_tracker_without_a_login_does_not_stop_a_run(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for variable in ("WANDB_API_KEY", "SWANLAB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody answers
    with caplog.at_level(logging.WARNING):
        assert train(tmp_path / "runs/run", *data, f"logger.trackers=[{','.join(NAMES)}]") == 0
    log = (tmp_path / "runs/run/trainer.log").read_text(encoding="utf-8")
    for name in NAMES:
        assert log.count(f"logger.trackers ({name}): failed at the event start") == 1
