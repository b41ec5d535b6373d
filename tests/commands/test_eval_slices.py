"""`trainer eval slices=[...]`: the metrics of the rows with each value of a column."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.jobs import rows, train, working_in
from tests.support.processes import run_without_torch
from trainer.cli import main
from trainer.commands.eval_slices import MAX_SLICES, _divide, check_columns
from trainer.data.digits import Digits
from trainer.errors import ConfigError
from trainer.predictions import read_predictions

REGIONS = ("north", "south", "", "north")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with a run whose splits are held out from one file."""
    made = tmp_path_factory.mktemp("slices")
    with working_in(made):
        with Path("all.csv").open("w", encoding="utf-8", newline="") as file:
            lines = [(*row, REGIONS[number % 4], number / 2) for number, row in enumerate(rows(240))]
            csv.writer(file).writerows([("text", "label", "region", "size"), *lines])
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


def test_other_verbs_read_an_evaluation_with_slices(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with working_in(folder):
        assert main(["eval", "run=runs/a", "device=cpu", "slices=[region]"]) == 0
        assert main(["report", "run=runs/a"]) == 0
        capsys.readouterr()
        assert main(["diff", "runs/a", "runs/a"]) == 0
    assert "slices" not in capsys.readouterr().out


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
