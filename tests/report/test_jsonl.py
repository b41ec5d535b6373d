import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.report.jsonl import JsonLines, read

NAMES = st.text(min_size=1).filter(lambda name: name not in {"event", "step", "epoch"})
TEXTS = st.text().filter(lambda text: text not in {"nan", "inf", "-inf"})
VALUES = st.dictionaries(NAMES, st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), TEXTS), max_size=5)


def log(path: Path, *events: tuple[str, int]) -> None:
    sink = JsonLines(path)
    for event, step in events:
        sink.log(event, step=step, epoch=step / 10, values={})
    sink.close()


def steps(path: Path) -> list[tuple[str, int]]:
    return [(event["event"], event["step"]) for event in read(path)]


def test_one_json_object_a_line_with_the_values_after_the_position(tmp_path: Path) -> None:
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
def test_what_is_read_is_what_was_logged(tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    sink = JsonLines(path)
    sink.log("train", step=3, epoch=0.25, values=values)
    sink.close()
    [event] = read(path)
    assert list(event) == ["event", "step", "epoch", *values]
    for name, value in values.items():
        if isinstance(value, float) and math.isnan(value):
            assert math.isnan(event[name])
        else:
            assert event[name] == value
            assert type(event[name]) is type(value)


def test_floats_without_a_word_in_json_are_strings(tmp_path: Path) -> None:
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


def test_a_line_cut_off_anywhere_spoils_no_other(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    log(whole, ("train", 10), ("train", 20))
    first, second = whole.read_bytes().splitlines(keepends=True)
    for length in range(len(second)):
        path = tmp_path / f"{length}.jsonl"
        path.write_bytes(first + second[:length])
        log(path, ("train", 30))
        # A line that lacks nothing but its end is whole.
        between = [("train", 20)] if length == len(second) - 1 else []
        assert steps(path) == [("train", 10), *between, ("train", 30)]
        assert path.read_bytes().startswith(first + second[:length])


def test_a_character_cut_in_two_spoils_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes('{"event": "checkpoint", "step": 1, "epoch": 0.1, "path": "é'.encode()[:-1])
    log(path, ("resume", 0))
    assert steps(path) == [("resume", 0)]


def test_a_resume_takes_back_the_steps_after_it(tmp_path: Path) -> None:
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


def test_a_resume_from_an_earlier_checkpoint_takes_back_later_resumes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log(path, ("train", 10), ("train", 20), ("resume", 20), ("train", 30), ("resume", 10), ("train", 20))
    assert steps(path) == [("train", 10), ("resume", 10), ("train", 20)]


def test_a_killed_process_loses_nothing_it_logged(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    code = (
        "import os, signal, sys; from pathlib import Path; from trainer.report.jsonl import JsonLines\n"
        "sink = JsonLines(Path(sys.argv[1]))\n"
        "for step in range(100): sink.log('train', step=step, epoch=0.0, values={'loss': 1.5})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    repository = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", code, path], cwd=repository, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [event["step"] for event in read(path)] == list(range(100))


def test_closing_twice_closes_only_its_own_file(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.close()
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)  # takes the number that was freed
    sink.close()
    os.close(other)


def test_values_may_not_hide_the_position(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl")
    with pytest.raises(AssertionError, match="cannot be named"):
        sink.log("train", step=1, epoch=0.0, values={"step": 2})
    sink.close()
