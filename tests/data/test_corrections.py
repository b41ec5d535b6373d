"""Corrected labels of rows, by file and row."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.jobs import TINY, working_in, write_data
from trainer.builders.data import build_encoded, build_task
from trainer.cli import main
from trainer.config.command import check_command
from trainer.config.jobs import TrainJob

HEADER = ("finding", "file", "row", "label", "suggested", "correction")


@pytest.fixture
def data(tmp_path: Path) -> Iterator[list[str]]:
    with working_in(tmp_path):
        yield [text for text in write_data(tmp_path) if "validation" not in text]


def labels(keys: Sequence[str]) -> dict[tuple[str, int], str]:
    """Return the label of each row of the splits, by its split and line, and which are in validation."""
    single = check_command("train", keys).single
    assert single is not None
    assert isinstance(single.job, TrainJob)
    task = build_task(single.job)
    encoded = build_encoded(single.job, task, fitted=False)
    names = task.info().class_names
    assert names is not None
    found = {}
    for split, rows in encoded.splits.items():
        targets = rows.data.column("labels" if "labels" in rows.column_names else "label").to_pylist()
        lines = encoded.origins(split, range(len(rows)))[1]
        found |= {(split, line): names[target] for line, target in zip(lines, targets, strict=True) if line}
    return found


def write_corrections(folder: Path, rows: Sequence[Sequence[object]], name: str = "corrections.csv") -> str:
    with (folder / name).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return f"data.corrections={folder / name}"


def other(label: str) -> str:
    return "tool" if label == "animal" else "animal"


@pytest.mark.parametrize("folds", [[], ["data.folds=3"]])
def test_corrected_rows_have_the_new_label_and_no_row_moves(folds: list[str], data: list[str], tmp_path: Path) -> None:
    before = labels([*data, *folds])
    chosen = [("train", 7), next(place for place in before if place[0] == "validation")]
    chosen = [place for place in chosen if place in before]
    rows: list[Sequence[object]] = [
        ("hard", tmp_path / "train.csv", line, before[split, line], "", f" {other(before[split, line])} ")
        for split, line in chosen
    ]
    rows.append(("hard", tmp_path / "train.csv", 9, "anything", "", " "))  # without a correction
    key = write_corrections(tmp_path, rows)
    after = labels([*data, *folds, key])
    assert after == before | {place: other(before[place]) for place in chosen}
    assert list(after) == list(before)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("", "{folder}/train.csv", 7, "spoon", "", "tool"), "row 1: the label of {folder}/train.csv, row 7 is "),
        (
            ("", "{folder}/train.csv", 900, "tool", "", "animal"),
            "row 1: the data has no row 900 of '{folder}/train.csv'",
        ),
        (
            ("", "other.csv", 7, "tool", "", "animal"),
            "row 1: the data has no row 7 of 'other.csv'. Write file and row",
        ),
        (("", "{folder}/train.csv", "x", "tool", "", "animal"), "row 1, column 'row': must be the number of a row"),
        (
            ("", "{folder}/train.csv", 7, "animal", "", "tol"),
            "row 1, column 'correction': no row of the data has this class, got 'tol'. Did you mean tool?",
        ),
        (("", "{folder}/train.csv", 7, "tool", "", ""), "has no corrections. Write the right labels into its column"),
    ],
)
def test_a_correction_that_does_not_fit_is_refused(
    row: Sequence[object], message: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = write_corrections(tmp_path, [[str(cell).replace("{folder}", str(tmp_path)) for cell in row]])
    assert main(["plan", *data, key]) == 6
    assert message.replace("{folder}", str(tmp_path)) in capsys.readouterr().err


def test_lists_of_earlier_versions_have_a_column_line(data: list[str], tmp_path: Path) -> None:
    before = labels(data)
    place = next(place for place in before if place[0] == "train")
    text = f"file,line,label,correction\n{tmp_path}/train.csv,{place[1]},{before[place]},{other(before[place])}\n"
    (tmp_path / "old.csv").write_text(text, encoding="utf-8")
    assert labels([*data, "data.corrections=old.csv"]) == before | {place: other(before[place])}


def test_files_that_are_no_corrections(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *data, "data.corrections=missing.csv"]) == 6
    assert capsys.readouterr().err.startswith("data.corrections: ")
    (tmp_path / "a.csv").write_text("file,row\na,1\n", encoding="utf-8")
    (tmp_path / "b.csv").write_bytes(b"file,row,label,correction\n\xff,1,a,b\n")
    place = f"{tmp_path}/train.csv,7"
    (tmp_path / "c.csv").write_text(f"file,row,label,correction\n{place},x,y\n{place},x,y\n", encoding="utf-8")
    for name, message in (
        ("a.csv", "a.csv: has no column 'label'. Its columns are file, row, label, correction."),
        ("b.csv", "b.csv: cannot be read as CSV ("),
        ("c.csv", "c.csv, row 2: corrects the same row as c.csv, row 1. Keep one."),
    ):
        assert main(["plan", *data, f"data.corrections={name}"]) == 6
        assert message in capsys.readouterr().err


def test_corrections_written_into_the_list_of_a_sweep_are_kept_and_used(data: list[str], tmp_path: Path) -> None:
    job = [*TINY, *data, "train.duration=4", "data.folds=2", "export.formats=[]"]
    assert main(["train", "-m", *job, "sweep.name=folds"]) == 0
    file = Path("sweeps/folds/label_errors.csv")
    with file.open(encoding="utf-8", newline="") as text:
        listed = list(csv.DictReader(text))
    listed[1]["correction"] = other(listed[1]["label"])
    with file.open("w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, listed[0].keys())
        writer.writeheader()
        writer.writerows(listed)
    content = file.read_bytes()
    assert main(["report", "sweeps/folds"]) == 0
    assert file.read_bytes().replace(b"\r\n", b"\n") == content.replace(b"\r\n", b"\n")
    before, after = labels(job), labels([*job, f"data.corrections={file}"])
    assert [place for place in before if before[place] != after[place]] == [
        place for place in before if place[0] != "test" and place[1] == int(listed[1]["row"])
    ]
