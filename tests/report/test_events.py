"""Event sinks: metrics.jsonl, TensorBoard, and several sinks at once."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.errors import CheckpointError
from trainer.report.events import JsonLines, Reports, read_events
from trainer.report.tensorboard import TensorBoard

NAMES = st.text(min_size=1).filter(lambda name: name not in {"event", "step", "epoch"})
TEXTS = st.text().filter(lambda text: text not in {"nan", "inf", "-inf"})
VALUES = st.dictionaries(
    NAMES, st.one_of(st.integers(-(2**63), 2**63), st.floats(), st.booleans(), st.none(), TEXTS), max_size=5
)


def log(path: Path, *events: tuple[str, int]) -> None:
    sink = JsonLines(path)
    for event, step in events:
        sink.log(event, step=step, epoch=step / 10, values={})
    sink.close()


def steps(path: Path) -> list[tuple[str, int]]:
    return [(event["event"], event["step"]) for event in read_events(path)]


def test_line_is_a_json_object_with_values_after_the_position(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path)
    sink.log("train", step=10, epoch=0.5, values={"loss": 2.25, "lr": 1e-3})
    sink.log("eval", step=10, epoch=0.5, values={"split": "validation", "weights": "ema", "accuracy": 0.75})
    # Not closed: every line is handed over when it is logged.
    assert path.read_text(encoding="utf-8").splitlines() == [
        '{"event": "train", "step": 10, "epoch": 0.5, "loss": 2.25, "lr": 0.001}',
        '{"event": "eval", "step": 10, "epoch": 0.5, "split": "validation", "weights": "ema", "accuracy": 0.75}',
    ]
    sink.close()


@given(values=VALUES)
def test_reading_returns_the_logged_values(tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    sink = JsonLines(path)
    sink.log("train", step=3, epoch=0.25, values=values)
    sink.close()
    [event] = read_events(path)
    assert list(event) == ["event", "step", "epoch", *values]
    for name, value in values.items():
        if isinstance(value, float) and math.isnan(value):
            assert math.isnan(event[name])
        else:
            assert event[name] == value
            assert type(event[name]) is type(value)


def test_non_finite_floats_are_strings(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path)
    sink.log("train", step=1, epoch=0.0, values={"loss": math.nan, "grad_norm": math.inf, "score": -math.inf})
    sink.close()
    line = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert (line["loss"], line["grad_norm"], line["score"]) == ("nan", "inf", "-inf")


def test_reopening_appends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log(path, ("start", 0), ("train", 10))
    before = path.read_bytes()
    log(path, ("resume", 10), ("train", 20))
    assert path.read_bytes().startswith(before)
    assert steps(path) == [("start", 0), ("train", 10), ("resume", 10), ("train", 20)]


def test_line_cut_off_anywhere_spoils_no_other_line(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    log(whole, ("train", 10), ("train", 20))
    first, second = whole.read_bytes().splitlines(keepends=True)
    for length in range(len(second)):
        path = tmp_path / f"{length}.jsonl"
        path.write_bytes(first + second[:length])
        log(path, ("train", 30))
        # A line that lacks only its line break is complete.
        between = [("train", 20)] if length == len(second) - 1 else []
        assert steps(path) == [("train", 10), *between, ("train", 30)]
        assert path.read_bytes().startswith(first + second[:length])


def test_character_cut_in_two_spoils_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes('{"event": "checkpoint", "step": 1, "epoch": 0.1, "path": "é'.encode()[:-1])
    log(path, ("resume", 0))
    assert steps(path) == [("resume", 0)]


def test_only_a_cut_line_that_no_kill_explains_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    line = '{{"event": "train", "step": {}, "epoch": 0.1}}\n'.format
    resumed = '{"event": "resume", "step": 1, "epoch": 0.1}\n'
    path = tmp_path / "metrics.jsonl"
    for text in (line(1) + line(2)[:20], line(1) + line(2)[:20] + "\n" + resumed + line(2)):
        path.write_text(text)
        steps(path)
        assert caplog.text == ""
    path.write_text(line(1) + line(2)[:20] + "\n" + line(3))
    assert steps(path) == [("train", 1), ("train", 3)]
    assert f"{path}: line 2 is cut and is left out" in caplog.text


def test_resume_cancels_events_of_later_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log(path, ("start", 0), ("train", 10), ("eval", 10), ("checkpoint", 10), ("train", 20), ("train", 30))
    log(path, ("resume", 10), ("train", 20), ("checkpoint", 20), ("train", 30))
    log(path, ("resume", 20), ("train", 30), ("end", 30))
    assert steps(path) == [
        ("start", 0),
        ("train", 10),
        ("eval", 10),
        ("checkpoint", 10),
        ("resume", 10),
        ("train", 20),
        ("checkpoint", 20),
        ("resume", 20),
        ("train", 30),
        ("end", 30),
    ]


def test_resume_from_an_earlier_checkpoint_cancels_later_resumes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log(path, ("train", 10), ("train", 20), ("resume", 20), ("train", 30), ("resume", 10), ("train", 20))
    assert steps(path) == [("train", 10), ("resume", 10), ("train", 20)]


def test_killed_process_loses_no_logged_event(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    code = (
        "import os, signal, sys; from pathlib import Path; from trainer.report.events import JsonLines\n"
        "sink = JsonLines(Path(sys.argv[1]))\n"
        "for step in range(100): sink.log('train', step=step, epoch=0.0, values={'loss': 1.5})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    repository = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", code, path], cwd=repository, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [event["step"] for event in read_events(path)] == list(range(100))


def test_closing_twice_closes_only_its_own_file(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.close()
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)  # reuses the file descriptor
    sink.close()
    os.close(other)


def test_values_must_not_overwrite_the_position(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl")
    with pytest.raises(AssertionError, match="cannot be named"):
        sink.log("train", step=1, epoch=0.0, values={"step": 2})
    sink.close()


class Recorder:
    """A sink that records calls in a list that several sinks share."""

    def __init__(self, name: str, seen: list[str], *, breaks: bool = False) -> None:
        self.name, self.seen, self.breaks = name, seen, breaks

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        self.seen.append(f"{self.name} {event} {step} {epoch} {dict(values)}")

    def close(self) -> None:
        self.seen.append(f"{self.name} closed")
        if self.breaks:
            raise OSError("disk full")


def test_every_sink_receives_every_event_in_order() -> None:
    seen: list[str] = []
    with Reports(Recorder("a", seen), None, Recorder("b", seen)) as reports:
        reports.log("train", step=1, epoch=0.5, values={"loss": 2.0})
    assert seen == ["a train 1 0.5 {'loss': 2.0}", "b train 1 0.5 {'loss': 2.0}", "b closed", "a closed"]


def test_all_sinks_are_closed_if_the_run_fails_and_one_cannot_be_closed() -> None:
    seen: list[str] = []
    reports = Reports(Recorder("a", seen), Recorder("b", seen, breaks=True))
    with pytest.raises(OSError, match="disk full") as failure, reports:
        raise KeyError("the run")
    assert seen == ["b closed", "a closed"]
    assert isinstance(failure.value.__context__, KeyError)


def test_failing_run_closes_its_sinks() -> None:
    seen: list[str] = []
    with pytest.raises(ZeroDivisionError), Reports(Recorder("a", seen)) as reports:
        reports.log("train", step=1, epoch=0.5, values={"loss": 1 / len(seen)})
    assert seen == ["a closed"]


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def log_loss(sink: TensorBoard, step: int, loss: float) -> None:
    sink.log("train", step=step, epoch=step / 10, values={"loss": loss})


def test_tensorboard_tags_follow_event_and_split(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path)
    sink.log("start", step=0, epoch=0.0, values={"seed": 0})
    sink.log("train", step=10, epoch=0.5, values={"loss": 2.0, "lr": 0.25})
    for weights, accuracy in (("raw", 0.5), ("ema", 0.75)):
        values = {"split": "validation", "weights": weights, "accuracy": accuracy}
        sink.log("eval", step=10, epoch=0.5, values=values)
    sink.log("checkpoint", step=10, epoch=0.5, values={"path": "checkpoints/step-00000010", "best": True})
    sink.close()
    assert read_scalars(tmp_path) == {
        "train/loss": [(10, 2.0)],
        "train/lr": [(10, 0.25)],
        "train/epoch": [(10, 0.5)],
        "validation/accuracy": [(10, 0.5)],
        "validation-ema/accuracy": [(10, 0.75)],
    }


def test_resumed_run_is_one_tensorboard_curve(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path)
    for step in (10, 20, 30):
        log_loss(first, step, loss=float(step))
    first.close()
    # Within a second, the names of the files of one process are in the order of their numbers only up to 9.
    (file,) = tmp_path.iterdir()
    file.rename(file.with_name("events.out.tfevents.1.first"))
    second = TensorBoard(tmp_path)
    second.log("resume", step=20, epoch=2.0, values={})
    log_loss(second, 30, loss=0.5)
    second.close()
    assert read_scalars(tmp_path)["train/loss"] == [(10, 10.0), (20, 20.0), (30, 0.5)]


def test_tensorboard_is_flushed_at_a_checkpoint(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path)
    log_loss(sink, 10, loss=2.0)
    sink.log("checkpoint", step=10, epoch=1.0, values={"path": "checkpoints/step-00000010", "best": False})
    assert read_scalars(tmp_path)["train/loss"] == [(10, 2.0)]
    sink.close()


def test_tensorboard_without_events_writes_nothing(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path / "tensorboard")
    sink.close()
    sink.close()
    assert not (tmp_path / "tensorboard").exists()


def test_events_module_does_not_import_torch() -> None:
    code = "import sys, trainer.report.events; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"null", "must be an object, got null"),
        (b"[1, 2]", "must be an object, got [1, 2]"),
        (b'{"step": 1, "epoch": 0}', "event: is missing"),
        (b'{"event": "train", "step": "1", "epoch": 0}', 'step: must be an integer, got "1"'),
        (b'{"event": "train", "step": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"a":' * 100_000, "is nested too deeply"),
    ],
)
def test_a_complete_line_that_is_no_event_is_named(line: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    start = b'{"event": "start", "step": 0, "epoch": 0.0}\n'
    path.write_bytes(start + line + b"\n")
    with pytest.raises(CheckpointError) as error:
        read_events(path)
    assert str(error.value).startswith(f"{path}: is damaged: line 2: {problem}")
    assert str(error.value).endswith(". Delete this line.")
    path.write_bytes(b"".join(each + b"\n" for each in path.read_bytes().split(b"\n") if each != line))
    assert [event["event"] for event in read_events(path)] == ["start"]
