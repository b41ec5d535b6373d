"""Observers receive every event of a run, and nothing that they do changes it."""

import json
import os
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.jobs import assert_resumes, checkpoint_files, events, train, without_clock, working_in, write_data
from trainer.cli import main
from trainer.config.command import check_command
from trainer.errors import ConfigError
from trainer.observers import Observers
from trainer.progress import Phase, shown_on
from trainer.protocols import Event, RunView

HERE = "tests.test_observers"
STEPS = 8


class Recorder:
    """Write every event into a file, with the process that received it."""

    def __init__(self, file: str) -> None:
        self._file = Path(file)

    def observe(self, event: Event, run: RunView) -> None:
        self._write(event=event.name, step=event.step, epoch=event.epoch, **event.values)
        assert run.folder.is_dir()
        assert run.name == run.folder.name
        assert run.config["train"]["duration"] == run.total_steps

    def close(self) -> None:
        self._write(event="close")

    def _write(self, **values: Any) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"pid": os.getpid(), **values}) + "\n")


class Vandal:
    """Do to a run what an observer should not do."""

    def __init__(self) -> None:
        self._draw()

    def observe(self, event: Event, run: RunView) -> None:
        self._draw()
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.set_num_threads(torch.get_num_threads() + 1)
        run.config.setdefault("optimizer", {})["lr"] = 100.0
        run.config.clear()
        event.values.clear()
        event.values["loss"] = float("nan")

    def close(self) -> None:
        self._draw()

    @staticmethod
    def _draw() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        torch.randn(7)


class Failing:
    """Raise an error at an event."""

    def __init__(self, event: str, exits: bool = False) -> None:
        self._event, self._exits = event, exits

    def observe(self, event: Event, run: RunView) -> None:
        if event.name == self._event:
            raise SystemExit(3) if self._exits else OSError("no network")

    def close(self) -> None:
        raise OSError("still no network")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("observers")
    with working_in(folder):
        yield [
            *write_data(folder),
            f"train.duration={STEPS}",
            "train.eval_every=4",
            "checkpoint.every=4",
            "model.dropout=0.1",
        ]


@pytest.fixture(scope="module")
def plain(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without observers."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    assert train(folder, *job) == 0
    return folder


@pytest.fixture(scope="module")
def observed(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with observers that misbehave, the last of them records."""
    folder = tmp_path_factory.mktemp("observed") / "run"
    assert train(folder, *job, observers(folder)) == 0
    return folder


def observers(run: Path) -> str:
    parts = [
        f"{{_target_: {HERE}.Vandal}}",
        f"{{_target_: {HERE}.Failing, event: train}}",
        f"{{_target_: {HERE}.Failing, event: checkpoint, exits: true}}",
        f"{{_target_: {HERE}.Recorder, file: {run.parent / 'events.jsonl'}}}",
    ]
    return f"observers=[{','.join(parts)}]"


def recorded(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.parent / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_end_of_an_observer_is_shown_and_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        def observe(self, event: Event, run: RunView) -> None:
            raise RuntimeError("observe")

        def close(self) -> None:
            raise RuntimeError("close")

    class Screen:
        def __init__(self) -> None:
            self.titles: list[str] = []

        def show_phases(self, phases: Sequence[Phase]) -> None:
            self.titles += [phase.title for phase in phases]

    screen = Screen()
    view = RunView(Path(), "run", {}, 1, 1)
    observers = Observers({"mine": Failing(), "other": Failing()}, view)
    with shown_on(screen):
        observers.log("start", step=0, epoch=0.0, values={})
        observers.log("train", step=1, epoch=0.0, values={})
        observers.close()
    assert screen.titles == ["other: waiting for its end", "mine: waiting for its end"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{name}: failed at the event start of step 0 and gets no more events (RuntimeError: observe)"
        for name in ("mine", "other")
    ]


def test_nothing_that_observers_do_moves_a_bit(plain: Path, observed: Path) -> None:
    for step in (4, STEPS):
        assert checkpoint_files(observed, step) == checkpoint_files(plain, step)
    assert without_clock(events(observed)) == without_clock(events(plain))
    assert torch.get_default_dtype() is torch.float32


def test_an_observer_receives_the_events_of_the_run_in_order(observed: Path) -> None:
    *told, last = recorded(observed)
    assert last["event"] == "close"
    kept = [{key: value for key, value in event.items() if key != "pid"} for event in told]
    # A checkpoint is reported by the thread that writes it, at any time; the order of its event may differ.
    in_order = [event for event in kept if event["event"] != "checkpoint"]
    assert in_order == [event for event in events(observed) if event["event"] != "checkpoint"]
    assert sorted(event["step"] for event in kept if event["event"] == "checkpoint") == [4, STEPS]
    assert {event["event"] for event in kept} == {"start", "train", "eval", "checkpoint", "end"}


def test_an_observer_that_fails_is_reported_once(observed: Path) -> None:
    log = (observed / "trainer.log").read_text(encoding="utf-8")
    assert log.count("observers.1") == log.count("observers.2") == 1
    assert f"observers.1 ({HERE}.Failing): failed at the event train of step 1 and gets no more events" in log
    assert "(OSError: no network)" in log
    assert "(SystemExit: 3)" in log
    assert "observers.0" not in log


def test_a_run_resumes_with_its_observers(observed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"resume={observed}"]) == 3
    assert "observers.0._target_: a stored config may name no observers" in capsys.readouterr().err
    assert_resumes(observed, 4, "trust=[tests]")
    assert main(["eval", f"run={observed}", "device=cpu", "split=validation"]) == 0


def test_events_of_other_threads_wait_for_the_thread_that_trains(tmp_path: Path) -> None:
    threads = []

    class Listening:
        def observe(self, event: Event, run: RunView) -> None:
            threads.append((event.name, threading.get_ident()))

        def close(self) -> None:
            threads.append(("close", threading.get_ident()))

    sink = Observers({"mine": Listening()}, RunView(tmp_path, "run", {}, 1, 1))
    other = threading.Thread(target=lambda: sink.log("checkpoint", step=1, epoch=1.0, values={}))
    other.start()
    other.join()
    assert threads == []
    sink.log("train", step=2, epoch=1.0, values={})
    sink.close()
    sink.close()
    assert threads == [(name, threading.get_ident()) for name in ("checkpoint", "train", "close")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[mine]", "observers.0: must be an observer, got 'mine'. An entry is {_target_: <class>"),
        ("[{_target_: no_such.Observer}]", "observers.0._target_: there is no package no_such"),
        ("mine", "observers: must be a list, got 'mine'"),
    ],
)
def test_errors_before_torch(job: list[str], value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=None) as error:
        check_command("train", [*job, f"observers={value}"])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (f"{HERE}.NoSuch", "observers.0._target_: there is no NoSuch in tests.test_observers"),
        (
            "logging.Logger",
            "observers.0.name: is missing; logging.Logger needs it for its parameter name. Add name: <value>",
        ),
        ("threading.Event", "observers.0._target_: Event lacks members of Observer (trainer/protocols)"),
    ],
)
def test_errors_before_training(
    job: list[str], target: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", *job, f"observers=[{{_target_: {target}}}]") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
