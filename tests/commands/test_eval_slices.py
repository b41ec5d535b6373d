"""`trainer eval slices=[...]`: the metrics of the rows with each value of a column."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score, r2_score

from tests.support.jobs import rows, train, working_in, write_roles
from tests.support.processes import run_without_torch
from trainer.cli import main
from trainer.commands.eval_slices import MAX_SLICES, _divide, check_columns
from trainer.data.digits import Digits
from trainer.display import join_items
from trainer.errors import ConfigError
from trainer.predictions import read_predictions

REGIONS = ("north", "south", "", "north")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with a run whose splits are held out from one file."""
    made = tmp_path_factory.mktemp("slices")
    with working_in(made):
        with Path("all.csv").open("w", encoding="utf-8", newline="") as file:
            lines = [(*row, REGIONS[number % 4], number / 2, "x" * 180) for number, row in enumerate(rows(240))]
            csv.writer(file).writerows([("text", "label", "region", "size", "note"), *lines])
        data = ["data=files", "data.train=all.csv", "data.split={validation: 0.3, test: 0.2}", "data.cache_dir=cache"]
        assert train(Path("runs/a"), *data, "train.duration=20", "optimizer.lr=0.01") == 0
        yield made


def test_each_slice_has_the_metrics_of_its_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with working_in(folder):
        arguments = ["eval", "run=runs/a", "device=cpu", "split=validation", "slices=[region,size]"]
        assert main(arguments) == 0
        assert main(arguments) == 0  # the file is recognized as an evaluation
    table, _ = read_predictions(folder / "runs/a/eval/validation.predictions.parquet")
    document = json.loads((folder / "runs/a/eval/validation.json").read_text(encoding="utf-8"))
    assert document["slices"].keys() == {"region", "size"}
    regions = np.array([REGIONS[(line - 1) % 4] for line in table["line"].to_pylist()])
    right = np.array(table["target"].to_pylist()) == np.array(table["prediction"].to_pylist())
    assert {part["value"] for part in document["slices"]["region"]} == {"north", "south", "(empty)"}
    for part in document["slices"]["region"]:
        own = regions == part["value"].replace("(empty)", "")
        assert part["rows"] == own.sum()
        assert part["metrics"].keys() == {"loss", "accuracy", "macro_f1"}
        assert part["metrics"]["accuracy"] == pytest.approx(right[own].mean())
        assert part["metrics"]["loss"] == pytest.approx(table["loss"].to_numpy()[own].mean(), rel=1e-6)
        low, high = part["intervals"]["accuracy"]
        assert low <= part["metrics"]["accuracy"] <= high
    assert len(document["slices"]["size"]) == 4
    assert sum(part["rows"] for part in document["slices"]["size"]) == len(table)
    shown = capsys.readouterr().out
    assert "by region, with 95% intervals" in shown
    south = next(part for part in document["slices"]["region"] if part["value"] == "south")
    assert (f"south    {south['rows']} (few)" in shown) == (south["rows"] < 30)


def test_slices_of_a_fold_are_those_of_its_rows(folder: Path) -> None:
    data = ["data=files", "data.train=all.csv", "data.cache_dir=cache", "data.folds=3", "data.fold=1"]
    with working_in(folder):
        assert train(Path("runs/fold"), *data, "train.duration=2") == 0
        assert main(["eval", "run=runs/fold", "device=cpu", "split=validation", "slices=[region]"]) == 0
    table, _ = read_predictions(folder / "runs/fold/eval/validation.predictions.parquet")
    lines = table["line"].to_pylist()
    document = json.loads((folder / "runs/fold/eval/validation.json").read_text(encoding="utf-8"))
    found = {part["value"]: part["rows"] for part in document["slices"]["region"]}
    assert found == Counter(REGIONS[(line - 1) % 4] or "(empty)" for line in lines)
    assert 60 < len(lines) < 100


def test_a_slice_without_an_interval_says_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with working_in(folder):
        assert main(["eval", "run=runs/a", "device=cpu", "slices=[text,label]", "metrics=[auroc]"]) == 0
    document = json.loads((folder / "runs/a/eval/test.json").read_text(encoding="utf-8"))
    single = [part for part in document["slices"]["text"] if part["rows"] == 1]
    assert single
    for part in single:
        assert part["no_interval"]["accuracy"] == "an interval needs at least 2 rows"
    for part in document["slices"]["label"]:
        assert "auroc" not in part["metrics"]
        assert part["no_interval"]["auroc"] == "no class or label has both rows with it and rows without it"
    shown = capsys.readouterr().out
    table = shown[shown.index("by label,") :]
    assert "  no value for auroc: no class or label has both rows with it and rows without it.\n" in table
    single_lines = [line for line in shown.splitlines() if line.endswith(": an interval needs at least 2 rows.")]
    assert len(single_lines) == 1
    assert single_lines[0].startswith("  no interval for accuracy, loss, macro_f1 of ")
    assert all(
        name in part["intervals"] or name in part["no_interval"]
        for parts in document["slices"].values()
        for part in parts
        for name in part["metrics"]
    )


def test_other_verbs_read_an_evaluation_with_slices(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with working_in(folder):
        assert main(["eval", "run=runs/a", "device=cpu", "slices=[region]"]) == 0
        assert main(["report", "run=runs/a"]) == 0
        capsys.readouterr()
        assert main(["diff", "runs/a", "runs/a"]) == 0
    assert "slices" not in capsys.readouterr().out


def test_tables_have_one_order_of_metrics_and_no_long_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with working_in(folder):
        assert main(["eval", "run=runs/a", "device=cpu", "split=validation", "slices=[note]"]) == 0
    lines = capsys.readouterr().out.splitlines()
    headers = [line.split() for line in lines if "accuracy" in line]
    assert [header[-3:] for header in headers] == [["accuracy", "loss", "macro_f1"]] * 2
    assert any(f"{'x' * 39}…{'x' * 20}  " in line for line in lines)
    assert max(map(len, lines)) < 180


def test_a_list_is_shown_without_brackets() -> None:
    assert [join_items(value) for value in (["fruit", "tool"], "a", 2.5)] == ["fruit, tool", "a", "2.5"]


def test_wrong_slices_are_reported_before_torch_is_loaded(folder: Path) -> None:
    with working_in(folder):
        codes, errors = run_without_torch(
            [
                ["eval", "run=runs/a", "slices=[region,seize]"],
                ["eval", "run=runs/a", "slices=[size]", "predictions=false"],
            ]
        )
    assert codes == [2, 2]
    assert "slices: no such column, got 'seize'. Did you mean size?" in errors
    assert "slices: are computed from the predictions" in errors


def test_a_source_without_columns_cannot_be_divided() -> None:
    source = Digits()
    with pytest.raises(ConfigError, match=r"^slices: the rows of Digits have no columns"):
        check_columns(source, "test", ["label"])


def test_many_values_are_joined_and_numbers_divided_into_quarters() -> None:
    texts = [f"t{number % (MAX_SLICES + 5)}" for number in range(100)] + ["t0"] * 9
    parts = dict(_divide(texts))
    assert next(iter(parts)) == "t0"
    assert list(parts)[-1] == "(5 other values)"
    assert sorted(np.concatenate(list(parts.values()))) == [*range(109)]
    numbers = [str(number / 4) for number in range(40)] + ["(empty)"] * 2
    parts = dict(_divide(numbers))
    assert list(parts) == ["0 to 2.25", "2.5 to 4.75", "5 to 7.25", "7.5 to 9.75", "(empty)"]
    assert sorted(np.concatenate(list(parts.values()))) == [*range(42)]
    assert list(dict(_divide(["2", "1", "2"]))) == ["2", "1"]


def read_json(path: Path) -> Any:
    """Return a document without NaN, which is not JSON."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


def test_slices_of_every_kind_have_the_metrics_of_their_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = {
        "tags": ("task=token_classification", "train.duration=80", "optimizer.lr=0.01"),
        "labels": ("task=multilabel_classification", "train.duration=10"),
        "values": ("task=regression", "data.columns.value=[value,score]", "train.duration=4"),
    }
    with working_in(tmp_path):
        data = write_roles(tmp_path)
        for name, job in jobs.items():
            assert train(tmp_path / name, *data, *job) == 0
            assert main(["eval", f"run={name}", "device=cpu", "slices=[label]"]) == 0
        shown = capsys.readouterr().out
        documents = {name: read_json(tmp_path / name / "eval/test.json") for name in jobs}
        tables = {name: read_predictions(tmp_path / name / "eval/test.predictions.parquet")[0] for name in jobs}

    # A tagger has the scores of entities in every slice, also where all are right, in the order of the main table.
    for part in documents["tags"]["slices"]["label"]:
        names = ["loss", "accuracy", "entity_f1", "entity_precision", "entity_recall"]
        assert [*part["metrics"]] == names
        assert part["intervals"].keys() >= {*names} - {"loss"}
    assert any(part["metrics"]["entity_f1"] == 1.0 for part in documents["tags"]["slices"]["label"])

    # Labels that do not occur in a slice do not count.
    for part in documents["labels"]["slices"]["label"]:
        rows = [
            row
            for row, label in zip(tables["labels"].to_pylist(), labels_of(tmp_path), strict=True)
            if label == part["value"]
        ]
        names = sorted({label for row in rows for label in (*row["target"], *row["prediction"])})
        target, answer = (
            np.array([[name in row[key] for name in names] for row in rows]) for key in ("target", "prediction")
        )
        assert part["metrics"]["macro_f1"] == pytest.approx(f1_score(target, answer, average="macro", zero_division=0))

    # Each of several numbers has scores of its own.
    targets = documents["values"]["targets"]
    assert [each["target"] for each in targets] == ["value", "score"]
    for place, each in enumerate(targets):
        predicted, target = (
            np.array(tables["values"][name].to_pylist())[:, place] for name in ("prediction", "target")
        )
        assert each["metrics"]["mae"] == pytest.approx(np.abs(predicted - target).mean())
        assert each["metrics"]["r2"] == pytest.approx(r2_score(target, predicted))
        assert each["metrics"]["rmse"] == pytest.approx(np.sqrt(((predicted - target) ** 2).mean()))
        low, high = each["intervals"]["rmse"]
        assert low < each["metrics"]["rmse"] < high
    assert documents["values"]["mae"] == pytest.approx(np.mean([each["metrics"]["mae"] for each in targets]))
    assert "each metric above is the mean over 2 targets." in shown
    assert "by target, with 95% intervals" in shown


def labels_of(folder: Path) -> list[str]:
    return [json.loads(line)["label"] for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()]


def test_metrics_of_classes_have_intervals_and_undefined_ones_a_reason(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = "metrics=[auroc,{_target_: torchmetrics.CalibrationError, name: ece, n_bins: 15}]"
    with working_in(folder):
        assert main(["eval", "run=runs/a", "device=cpu", metrics, "trust=[torchmetrics]", "slices=[region]"]) == 0
        document = read_json(folder / "runs/a/eval/test.json")
        low, high = document["intervals"]["ece"]
        assert low < high
        assert all(part["metrics"].keys() >= {"auroc", "ece"} for part in document["slices"]["region"])
        Path("one.csv").write_text("text,label,region,size\nan apple a day,fruit,north,1\n", encoding="utf-8")
        capsys.readouterr()
        assert main(["eval", "run=runs/a", "device=cpu", "metrics=[auroc]", "data.test=one.csv"]) == 0
        (file,) = Path("runs/a/eval").glob("test-one-*.json")
        assert read_json(file)["auroc"] is None
        shown = capsys.readouterr().out
        assert "no value for auroc: no class or label has both rows with it and rows without it." in shown
        assert "no interval for loss, accuracy, macro_f1: an interval needs at least 2 rows." in shown
        assert main(["eval", "run=runs/a", "device=cpu", "metrics=[auroc]", "data.test=one.csv"]) == 0  # is its own
        assert main(["report", "run=runs/a"]) == 0
        assert main(["diff", "runs/a", "runs/a"]) == 0
