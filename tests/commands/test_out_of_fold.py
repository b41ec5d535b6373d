"""A sweep over folds: one prediction of every row, and its likely wrong labels."""

import csv
import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from tests.support.jobs import TINY, working_in, write_data
from tests.support.pages import check_page
from tests.support.stored_predictions import write_predictions
from trainer.cli import main
from trainer.commands.out_of_fold import write_out_of_fold

ROOT = Path(__file__).resolve().parents[2]


def test_a_sweep_over_folds_predicts_every_row_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [text for text in write_data(tmp_path) if "validation" not in text]
    job = [*TINY, *data, "train.duration=40", "optimizer.lr=1e-2", "data.folds=2", "sweep.name=folds"]
    file = tmp_path / "train.csv"
    lines = file.read_text(encoding="utf-8").splitlines()
    wrong = {number: line for number, line in enumerate(lines) if number in (7, 21)}
    for number, line in wrong.items():
        text, _, label = line.rpartition(",")
        lines[number] = f"{text},{'tool' if label == 'animal' else 'animal'}"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with working_in(tmp_path):
        assert main(["train", "-m", *job, "seed=0,1"]) == 0
        folder = Path("sweeps/folds")
        with (folder / "table.csv").open(encoding="utf-8", newline="") as table:
            (row,) = csv.DictReader(table)
        assert row["jobs"] == "4"
        table_of_rows = parquet.read_table(folder / "out_of_fold.parquet")
        assert sorted(table_of_rows.column("line").to_pylist()) == sorted(2 * [*range(1, 62)])
        assert set(table_of_rows.column("job").to_pylist()) == {
            f"seed-{seed}_data.fold-{fold}" for seed in (0, 1) for fold in (0, 1)
        }
        errors = (folder / "label_errors.csv").read_bytes()
        listed = list(csv.DictReader(errors.decode().splitlines()))
        assert {int(each["row"]) for each in listed[:6]} >= {*wrong}
        assert {each["finding"] for each in listed} <= {"likely wrong", "hard"}
        page = (folder / "report.html").read_text(encoding="utf-8")
        check_page(page)
        assert "Likely wrong labels, contradictions and hard rows" in page
        for number in wrong:  # with its text, its label, and the other class
            (row,) = re.findall(rf"<tr[^>]*>(?:(?!</tr>).)*train\.csv:{number}<.*?</tr>", page, re.DOTALL)
            text, _, label = lines[number].rpartition(",")
            cells = [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)]
            assert cells[2:5] == [text, label, "tool" if label == "animal" else "animal"]

        (folder / "label_errors.csv").unlink()
        capsys.readouterr()
        assert main(["report", "sweeps/folds"]) == 0
        assert capsys.readouterr().out == "sweeps/folds/report.html\n"
        assert (folder / "label_errors.csv").read_bytes() == errors
        assert (folder / "report.html").read_text(encoding="utf-8") == page


def test_predictions_of_several_seeds_count_with_their_mean_whatever_the_order_of_the_classes(tmp_path: Path) -> None:
    place: dict[str, list[Any]] = {"file": ["a.csv", "a.csv"], "line": [1, 2], "target": ["x", "y"]}
    columns: dict[str, dict[str, Any]] = {
        "seed-0": {"classes": ["x", "y"], "probabilities": [[0.9, 0.1], [0.7, 0.3]], "loss": [0.1, 1.0]},
        "seed-1": {"classes": ["y", "x"], "probabilities": [[0.5, 0.5], [0.1, 0.9]], "loss": [0.7, 2.0]},
    }
    for name, own in columns.items():
        (tmp_path / name).mkdir()
        write_predictions(tmp_path / name / "eval", "class", name="validation", prediction=["x", "x"], **place, **own)
    (row,) = write_out_of_fold(tmp_path, {name: {"data.fold": "0"} for name in columns})
    assert row[1:5] == ["a.csv", 2, "y", "x"]
    assert row[5:8] == pytest.approx([0.2, 0.8, 1.5])


def test_rows_with_the_same_text_and_different_labels_are_listed_as_contradictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [text for text in write_data(tmp_path) if "validation" not in text]
    file = tmp_path / "train.csv"
    lines = file.read_text(encoding="utf-8").splitlines()
    text, _, label = lines[9].rpartition(",")
    lines += [f"{text},{label}", f" {text} ,{'tool' if label == 'animal' else 'animal'}"]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    job = [*TINY, *data, "train.duration=40", "optimizer.lr=1e-2", "data.folds=2", "sweep.name=folds"]
    with working_in(tmp_path):
        assert main(["train", "-m", *job]) == 0
        with Path("sweeps/folds/label_errors.csv").open(encoding="utf-8", newline="") as stream:
            listed = list(csv.DictReader(stream))
    findings = [row["finding"] for row in listed]
    assert findings == sorted(findings, key=["likely wrong", "contradiction", "hard"].index)
    pair = {row["finding"] for row in listed if row["row"] in ("9", str(len(lines) - 2), str(len(lines) - 1))}
    assert "contradiction" in pair
    assert pair <= {"likely wrong", "contradiction"}
    count = findings.count("contradiction")
    shown = capsys.readouterr().err
    assert f"label_errors.csv: {len(listed)} rows: " in shown
    assert f"{count} contradiction" in shown


def test_predictions_of_an_earlier_version_have_no_contradictions(tmp_path: Path) -> None:
    columns: dict[str, Any] = {"target": ["x", "y"], "prediction": ["x", "x"], "loss": [0.1, 1.0]}
    columns |= {"probabilities": [[0.9, 0.1], [0.6, 0.4]], "file": ["a.csv"] * 2, "input_digest": [5, 5]}
    for fold in (0, 1):
        folder = tmp_path / f"data.fold-{fold}"
        folder.mkdir()
        lines = [2 * fold + 1, 2 * fold + 2]
        file = write_predictions(folder / "eval", "class", name="validation", classes=["x", "y"], line=lines, **columns)
    jobs = {f"data.fold-{fold}": {"data.fold": str(fold)} for fold in (0, 1)}
    assert [row[0] for row in write_out_of_fold(tmp_path, jobs)] == ["contradiction"] * 4
    parquet.write_table(parquet.read_table(file).drop_columns(["input_digest"]), file)
    assert [(row[0], row[2]) for row in write_out_of_fold(tmp_path, jobs)] == [
        ("contradiction", 2),
        ("contradiction", 1),
        ("hard", 4),
    ]


@pytest.mark.slow
def test_planted_label_errors_of_the_default_data_are_listed_first(tmp_path: Path) -> None:
    model = ["model.dim=64", "model.depth=1", "model.heads=2", "model.hidden=128", "task.max_length=64"]
    keys = [*model, "optimizer.lr=3e-3", "train.duration=5ep", "data.folds=4", "device=cpu", "logger.console=none"]
    script = ROOT / "scripts" / "planted_label_errors.py"
    command = [sys.executable, str(script), str(tmp_path / "planted"), *keys, "logger.tensorboard=false"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["found"] >= 0.6
