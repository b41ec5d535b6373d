"""`trainer diff`: two runs side by side."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import train, working_in, write_data
from trainer.cli import main
from trainer.commands.diff import difference
from trainer.commands.results import Results

STEPS = ["train.duration=6", "train.eval_every=3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("diff")
    with working_in(made):
        data = write_data(made)
        assert train(made / "runs" / "one", *data, *STEPS) == 0
        assert train(made / "runs" / "two", *data, *STEPS, "scheduler=constant", "optimizer.lr=1e-3") == 0
        yield made


def diff(capsys: pytest.CaptureFixture[str], *overrides: str) -> dict[str, Any]:
    assert main(["diff", "json=true", *overrides]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_run_and_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = diff(capsys, "left=runs/one", "right=runs/one")

    assert (found["config"], found["results"]) == ({}, {})
    assert found["steps"] == {"shared": 6, "last_equal": 6, "first_different": None}
    assert main(["diff", "left=runs/one", "right=runs/one"]) == 0
    shown = capsys.readouterr().out
    assert "config: equal" in shown
    assert "results: equal" in shown
    assert "equal to the bit at all 6 steps" in shown


def test_two_runs_part_where_they_first_learn_otherwise(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = diff(capsys, "left=runs/one", "right=runs/two")

    assert found["config"]["scheduler._target_"] == {
        "left": "trainer.scheduler.linear.linear",
        "right": "trainer.scheduler.constant.constant",
    }
    assert found["config"]["scheduler.warmup"].keys() == {"left"}
    assert found["config"].keys() == {"run.dir", "scheduler._target_", "scheduler.warmup"}
    # The first step's loss is that of the same weights; its update is not the same.
    assert found["steps"]["last_equal"] >= 1
    assert found["steps"]["first_different"]["step"] == found["steps"]["last_equal"] + 1
    assert "test.loss" in found["results"]
    assert "best.value" in found["results"] or "best.step" in found["results"]


def test_the_two_newest_runs_are_meant_where_none_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = diff(capsys)
    assert (found["left"], found["right"]) == ("runs/one", "runs/two")
    found = diff(capsys, "right=runs/one")
    assert (found["left"], found["right"]) == ("runs/two", "runs/one")


def test_a_changed_evaluation_and_a_changed_step_are_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = folder / "copy"
    shutil.copytree(folder / "runs" / "one", copy)
    metrics = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    changed = next(event for event in metrics if event["event"] == "train" and event["step"] == 4)
    changed["loss"] += 1e-12
    (copy / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in metrics))
    evaluation = json.loads((copy / "eval" / "test.json").read_text())
    (copy / "eval" / "test.json").write_text(json.dumps(evaluation | {"accuracy": 0.125}))
    found = diff(capsys, "left=runs/one", f"right={copy}")

    assert found["results"] == {"test.accuracy": {"left": evaluation["accuracy"], "right": 0.125}}
    assert found["steps"]["last_equal"] == 3
    assert found["steps"]["first_different"]["step"] == 4
    assert main(["diff", "left=runs/one", f"right={copy}"]) == 0
    shown = capsys.readouterr().out
    assert "test.accuracy" in shown
    assert "they part at step 4" in shown
    assert "equal to the bit up to step 3" in shown


@pytest.mark.parametrize("nothing", [None, {}])
def test_a_part_that_one_run_lacks_is_told_by_its_keys_alone(nothing: Any, tmp_path: Path) -> None:
    def of(**config: Any) -> Results:
        return Results(tmp_path, config, [], {}, None)

    found = difference(of(prune=nothing, size=28), of(prune={"amount": 0.3}, size={"height": 28}))["config"]
    assert found == {
        "prune.amount": {"right": 0.3},
        "size": {"left": 28},
        "size.height": {"right": 28},
    }


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["left=nowhere", "right=runs/one"], "left: no such folder, got 'nowhere'"),
        (["left=runs/one", "right=runs"], "right: holds no run, got 'runs'"),
    ],
)
def test_what_is_no_run(overrides: list[str], told: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", *overrides]) == 3
    assert told in capsys.readouterr().err


def test_there_must_be_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with working_in(tmp_path):
        assert main(["diff"]) == 3
    assert "left: there are no two runs under runs/" in capsys.readouterr().err
