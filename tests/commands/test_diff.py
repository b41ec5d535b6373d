"""`trainer diff`: two runs side by side."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.jobs import train, working_in, write_data
from trainer.cli import main
from trainer.commands.diff import _table_rows, compare_runs
from trainer.commands.diff_rows import compare_rows, print_comparison
from trainer.commands.run_folders import RunRecord
from trainer.predictions import predictions_schema, predictions_writer
from trainer.report.console import open_console

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


def test_run_does_not_differ_from_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = diff(capsys, "left=runs/one", "right=runs/one")

    assert (document["config"], document["results"]) == ({}, {})
    assert document["steps"] == {"shared": 6, "last_equal": 6, "first_different": None}
    assert main(["diff", "left=runs/one", "right=runs/one"]) == 0
    shown = capsys.readouterr().out
    assert "config: equal" in shown
    assert "results: equal" in shown
    assert "bitwise equal at all 6 steps" in shown


def test_first_difference_of_two_runs_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = diff(capsys, "left=runs/one", "right=runs/two")

    assert document["config"]["scheduler._target_"] == {
        "left": "trainer.scheduler.linear.linear",
        "right": "trainer.scheduler.constant.constant",
    }
    assert document["config"]["scheduler.warmup"].keys() == {"left"}
    assert document["config"].keys() == {"run.dir", "scheduler._target_", "scheduler.warmup"}
    # The loss of the first step is computed before the first update, so it is equal.
    assert document["steps"]["last_equal"] >= 1
    assert document["steps"]["first_different"]["step"] == document["steps"]["last_equal"] + 1
    assert "test.loss" in document["results"]
    assert "best.value" in document["results"] or "best.step" in document["results"]


def test_two_newest_runs_are_the_default(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = diff(capsys)
    assert (document["left"], document["right"]) == ("runs/one", "runs/two")
    document = diff(capsys, "right=runs/one")
    assert (document["left"], document["right"]) == ("runs/two", "runs/one")


def test_changed_evaluation_and_changed_step_are_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = folder / "copy"
    shutil.copytree(folder / "runs" / "one", copy)
    metrics = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    changed = next(event for event in metrics if event["event"] == "train" and event["step"] == 4)
    changed["loss"] += 1e-12
    (copy / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in metrics))
    evaluation = json.loads((copy / "eval" / "test.json").read_text())
    (copy / "eval" / "test.json").write_text(json.dumps(evaluation | {"accuracy": 0.125}))
    document = diff(capsys, "left=runs/one", f"right={copy}")

    assert document["results"] == {"test.accuracy": {"left": evaluation["accuracy"], "right": 0.125}}
    assert document["steps"]["last_equal"] == 3
    assert document["steps"]["first_different"]["step"] == 4
    assert main(["diff", "left=runs/one", f"right={copy}"]) == 0
    shown = capsys.readouterr().out
    assert "test.accuracy" in shown
    assert "the runs diverge at step 4" in shown
    assert "bitwise equal up to step 3" in shown


@pytest.mark.parametrize("empty", [None, {}])
def test_part_of_only_one_run_is_listed_by_its_keys(empty: Any, tmp_path: Path) -> None:
    def record(**config: Any) -> RunRecord:
        return RunRecord(tmp_path, config, [], {}, None)

    differences = compare_runs(record(prune=empty, size=28), record(prune={"amount": 0.3}, size={"height": 28}))[
        "config"
    ]
    assert differences == {
        "prune.amount": {"right": 0.3},
        "size": {"left": 28},
        "size.height": {"right": 28},
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["left=nowhere", "right=runs/one"], "left: no such folder, got 'nowhere'"),
        (["left=runs/one", "right=runs"], "right: contains no run, got 'runs'"),
    ],
)
def test_path_without_a_run_is_an_error(
    overrides: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", *overrides]) == 3
    assert message in capsys.readouterr().err


def test_two_runs_are_required(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with working_in(tmp_path):
        assert main(["diff"]) == 3
    assert "left: there are no two runs under runs/" in capsys.readouterr().err


def test_values_are_shown_with_the_digits_that_tell_them_apart() -> None:
    rows = _table_rows({"loss": {"left": 0.123456789, "right": 0.123456788}, "lr": {"left": 0.1, "right": 0.2}})

    assert rows == [["loss", "0.123456789", "0.123456788"], ["lr", 0.1, 0.2]]


def test_runs_are_compared_on_the_rows_that_both_have_predicted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = diff(capsys, "left=runs/one", "right=runs/two")["rows"]
    assert rows.keys() == {"test", "validation"}
    compared = rows["test"]
    assert compared["rows"] == 20
    assert compared["metrics"].keys() == {"loss", "accuracy", "macro_f1"}
    for metric in compared["metrics"].values():
        assert metric["difference"] == pytest.approx(metric["right"] - metric["left"])
        assert metric["interval"][0] <= metric["difference"] <= metric["interval"][1]
    same = diff(capsys, "left=runs/one", "right=runs/one")["rows"]["test"]
    assert {item["verdict"] for item in same["metrics"].values()} == {"no difference shown"}
    assert same["changed"] == {"correct_only_left": 0, "correct_only_right": 0, "first": []}


def write_run(folder: Path, predictions: list[str], losses: list[float], *, digest: str = "d") -> RunRecord:
    """Write predictions of classes whose targets are all `a`, and return the record of their run."""
    evaluation = {"split": "test", "step": 1, "weights": "raw", "digest": digest}
    accuracy, loss = predictions.count("a") / len(predictions), sum(losses) / len(losses)
    file = folder / "eval/test.predictions.parquet"
    file.parent.mkdir(parents=True)
    schema = predictions_schema("class", several_values=False, about={"classes": ["a", "b"], **evaluation})
    rows = [
        {"row": row, "file": "my.csv", "line": row + 1, "target": "a", "prediction": each, "loss": cost}
        for row, (each, cost) in enumerate(zip(predictions, losses, strict=True))
    ]
    with predictions_writer(file, schema) as writer:
        writer.write(pa.Table.from_pylist([row | {"num_targets": 1} for row in rows], schema))
    scores = {**evaluation, "accuracy": accuracy, "loss": loss}
    return RunRecord(folder, {"loss": {"_target_": "x"}}, [], {"test": scores}, {"step": 1, "name": "accuracy"})


def test_verdict_and_rows_that_changed_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = write_run(tmp_path / "left", ["a", "b"] * 150, [1.0, 0.5] * 150)
    right = write_run(tmp_path / "right", ["a"] * 295 + ["b"] * 5, [1.1, 0.4] * 150)
    compared = compare_rows(left, right)["test"]
    accuracy, loss = compared["metrics"]["accuracy"], compared["metrics"]["loss"]
    assert (accuracy["verdict"], loss["verdict"]) == ("better", "no difference shown")
    # 147 rows gained and 2 lost: the standard error of the mean of +1, 0 and -1.
    error = ((149 / 300 - (145 / 300) ** 2) / 300) ** 0.5
    assert accuracy["difference"] == pytest.approx(145 / 300)
    assert accuracy["interval"] == pytest.approx([145 / 300 - 1.96 * error, 145 / 300 + 1.96 * error], abs=0.3 * error)
    changed = compared["changed"]
    assert (changed["correct_only_left"], changed["correct_only_right"], len(changed["first"])) == (2, 147, 10)
    assert changed["first"][0] == {"row": 1, "file": "my.csv", "line": 2, "target": "a", "left": "b", "right": "a"}

    print_comparison(open_console("plain"), "test", compared, ("A", "B"), "accuracy")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("test: B is better than A: accuracy +0.4833, 95% interval +0.4")
    assert "test: 149 rows changed sides: 2 correct only in A and 147 correct only in B; the first:" in lines
    assert any(line.split() == ["my.csv,", "2", "a", "b", "a"] for line in lines)
    assert compare_rows(right, left)["test"]["metrics"]["accuracy"]["verdict"] == "worse"


def test_metrics_that_cannot_be_compared_say_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"metrics": ["auroc", {"_target_": "torchmetrics.CohenKappa"}]}
    runs = []
    for name in ("left", "right"):
        record = write_run(tmp_path / name, ["a", "b"] * 10, [1.0, 0.5] * 10)
        scores = record.evaluations["test"] | {"auroc": 0.5, "cohen_kappa": 0.25, "max_error": 1.0}
        scores["no_interval"] = {"max_error": "largest"}
        runs.append(replace(record, config=record.config | metrics, evaluations={"test": scores}))
    compared = compare_rows(*runs)["test"]
    by_class = "it is computed by its class, and only from the outputs of one run at a time"
    unknown = "the predictions do not contain what it is computed from"
    assert compared["no_interval"] == {"auroc": unknown, "cohen_kappa": by_class, "max_error": "largest"}
    print_comparison(open_console("plain"), "test", compared, ("A", "B"), "accuracy")
    assert f"  not compared: cohen_kappa: {by_class}." in capsys.readouterr().out.splitlines()


def test_runs_before_and_after_corrections_are_compared_on_the_corrected_classes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (folder / "validation.csv").read_text(encoding="utf-8").splitlines()
    labels = [line.rpartition(",")[2] for line in lines]
    new = {number: "tool" if labels[number] == "animal" else "animal" for number in (3, 7, 11)}
    rows = [f"{folder}/validation.csv,{number},{labels[number]},{label}" for number, label in new.items()]
    (folder / "corrections.csv").write_text("\n".join(["file,line,label,correction", *rows]) + "\n", encoding="utf-8")
    data = [f"data.{split}={folder}/{split}.csv" for split in ("train", "validation", "test")]
    job = ["data=files", *data, "data.corrections=corrections.csv", "optimizer.lr=1e-2", "train.duration=20"]
    with working_in(folder):
        assert train(folder / "corrected", *job) == 0
        compared = diff(capsys, "left=runs/one", "right=corrected")["rows"]
        assert "corrected" not in compared["test"]
        compared = compared["validation"]
        assert (compared["rows"], compared["corrected"]) == (20, 3)
        assert compared["metrics"].keys() == {"accuracy", "macro_f1"}
        tables = [pq.read_table(Path(run, "eval/validation.predictions.parquet")) for run in ("runs/one", "corrected")]
        right = tables[1]["target"].to_pylist()
        assert [right[number - 1] for number in new] == list(new.values())
        answers = [table["prediction"].to_pylist() for table in tables]
        shares = [sum(map(str.__eq__, each, right)) / 20 for each in answers]
        accuracy = compared["metrics"]["accuracy"]
        assert [accuracy["left"], accuracy["right"]] == pytest.approx(shares)
        assert accuracy["interval"][0] <= accuracy["difference"] <= accuracy["interval"][1]
        changed = compared["changed"]
        difference = changed["correct_only_right"] - changed["correct_only_left"]
        assert difference / 20 == pytest.approx(accuracy["difference"])
        assert diff(capsys, "left=corrected", "right=runs/one")["rows"]["validation"]["metrics"]["accuracy"][
            "difference"
        ] == pytest.approx(-accuracy["difference"])
        assert main(["diff", "runs/one", "corrected"]) == 0
        assert "validation: 3 rows have another class in one of the runs; both runs are scored" in (
            capsys.readouterr().out
        )

        file = folder / "corrected/eval/validation.predictions.parquet"
        pq.write_table(pq.read_table(file).drop_columns(["input_digest"]), file)
        assert diff(capsys, "left=runs/one", "right=corrected")["rows"].keys() == {"test"}
        other_rows = pq.read_table(file.parent / "test.predictions.parquet")["input_digest"]
        assert main(["eval", "run=corrected", "split=validation"]) == 0
        capsys.readouterr()
        assert diff(capsys, "left=runs/one", "right=corrected")["rows"]["validation"]["corrected"] == 3
        table = pq.read_table(file)
        pq.write_table(table.set_column(table.column_names.index("input_digest"), "input_digest", other_rows), file)
        assert diff(capsys, "left=runs/one", "right=corrected")["rows"].keys() == {"test"}


def test_only_predictions_of_the_same_rows_and_losses_of_one_kind_are_compared(tmp_path: Path) -> None:
    left = write_run(tmp_path / "left", ["a", "b"] * 10, [1.0, 0.5] * 10)
    same = write_run(tmp_path / "same", ["a", "b"] * 10, [1.0, 0.5] * 10)
    others = write_run(tmp_path / "others", ["a", "b"] * 10, [1.0, 0.5] * 10, digest="e")
    assert compare_rows(left, others) == {}
    assert "loss" in compare_rows(left, same)["test"]["metrics"]
    focal = replace(same, config={"loss": {"_target_": "y"}})
    assert compare_rows(left, focal)["test"]["metrics"].keys() == {"accuracy"}
    assert compare_rows(left, focal)["test"]["no_interval"] == {"loss": "the runs have different losses"}
    scored_again = replace(same, evaluations={"test": same.evaluations["test"] | {"step": 2}})
    assert compare_rows(left, scored_again) == {}
    shorter = write_run(tmp_path / "shorter", ["a", "b"] * 9, [1.0, 0.5] * 9)
    assert compare_rows(left, shorter) == {}
    file = same.folder / "eval/test.predictions.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["target"]), file)
    assert compare_rows(left, same) == {}
    file.write_bytes(b"damaged")
    assert compare_rows(left, same) == {}
