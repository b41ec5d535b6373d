"""The section about the answers of a model, for every kind of predictions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.support.pages import check_page
from tests.support.stored_predictions import write_predictions
from trainer.errors import CheckpointError
from trainer.predictions import Kind, read_about
from trainer.report.answers import answer_section
from trainer.report.page import Page, Section, render_page

HOSTILE = '"><script>alert(1)</script>\x1b[31m\u202e'


def section_of(file: Path) -> Section:
    return answer_section(file, read_about(file))


def render(*sections: Section) -> str:
    text = render_page(Page("run", "", "", [], sections))
    check_page(text)
    return text


def classification(folder: Path, count: int, rows: int = 3_000) -> Path:
    """Write predictions of classes of which neighbors are confused."""
    random = np.random.default_rng(0)
    names = [f"class {index}" for index in range(count)]
    targets = random.integers(0, count, rows)
    answers = np.where(random.random(rows) < 0.7, targets, (targets + 1) % count)
    columns: dict[str, Any] = {
        "target": [names[index] for index in targets],
        "prediction": [names[index] for index in answers],
        "probabilities": random.random((rows, min(count, 10))).tolist(),
        "loss": random.random(rows).tolist(),
    }
    return write_predictions(folder, "class", classes=names, **columns)


@pytest.mark.parametrize(
    ("count", "titles"),
    [
        (2, ["Scores of each class, the lowest F1 first"]),
        (15, ["Commonest confusions", "Scores of each class, the lowest F1 first"]),
        (
            1_000,
            [
                "Commonest confusions: 30 of 580",
                "Scores of each class, the lowest F1 first: 30 of 1000",
                "The other 970",
            ],
        ),
    ],
)
def test_any_number_of_classes_is_readable(count: int, titles: list[str], tmp_path: Path) -> None:
    section = section_of(classification(tmp_path, count))

    assert [table.title for table in section.tables] == titles
    figures = [figure.title for figure in section.figures]
    assert figures == ["Confusion matrix", "Calibration", "How sure the model is"]
    scores = next(table for table in section.tables if table.title.startswith("Scores"))
    f1 = [row[3] for row in scores.rows if row[3] is not None]
    assert f1 == sorted(f1)
    assert len(render(section)) < 400_000


KINDS: dict[Kind, dict[str, list[Any]]] = {
    "class": {"target": [HOSTILE, "b", None], "prediction": ["b", "b", "b"], "probabilities": [[0.4, 0.6]] * 3},
    "labels": {
        "target": [[HOSTILE], []],
        "prediction": [["b"], []],
        "probabilities": [[0.4, 0.6]] * 2,
        "loss": [1.0, 2.0],
    },
    "tags": {"target": [[f"B-{HOSTILE}", "O"]], "prediction": [["O", "O"]], "loss": [1.0], "num_right": [1]},
    "values": {"target": [1.0, 2.0, None], "prediction": [1.5, float("nan"), 1.0], "file": [HOSTILE] * 3},
    "similarity": {"target": [None, None], "prediction": [0.5, 0.9], "file": [HOSTILE] * 2},
    "tokens": {"loss": [2.0, None], "num_targets": [7, 0], "num_right": [3, 0], "file": [HOSTILE] * 2},
}
FIGURES: dict[Kind, list[str]] = {
    "class": ["Confusion matrix", "Calibration", "How sure the model is"],
    "labels": ["Calibration", "How sure the model is"],
    "tags": [],
    "values": ["Prediction against target", "Residuals", "Residuals against prediction"],
    "similarity": ["Cosine of the two texts of a pair"],
    "tokens": ["Loss of each text", "Right tokens of each text"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_figures_and_is_escaped(kind: Kind, tmp_path: Path) -> None:
    classes = [HOSTILE, "b"] if kind in ("class", "labels") else None
    file = write_predictions(tmp_path, kind, classes=classes, **KINDS[kind])
    section = section_of(file)
    text = render(section)

    assert [figure.title for figure in section.figures] == FIGURES[kind]
    assert "<script" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_without_values_have_a_section(kind: Kind, tmp_path: Path) -> None:
    for count in (0, 3):
        file = write_predictions(tmp_path / str(count), kind, row=list(range(count)))
        render(section_of(file))


def test_several_outputs_and_ragged_rows(tmp_path: Path) -> None:
    rows = {"target": [[1.0, 2.0], [3.0, 4.0], [5.0]], "prediction": [[1.0, 2.5], [3.0, 4.0], [5.0, 6.0]]}
    section = section_of(write_predictions(tmp_path, "values", **rows))

    assert [figure.title for figure in section.figures][:2] == [
        "Prediction against target of output 1",
        "Residuals of output 1",
    ]
    (distances,) = section.tables
    assert [row[:2] for row in distances.rows] == [["output 1", 2], ["output 2", 2]]


@pytest.mark.parametrize("numbers", [[3e38] * 4, [1.0, 1.0 + 1e-15], [-3e38, 3e38], [0.0, 5e-324]])
def test_any_numbers_have_a_histogram(numbers: list[float], tmp_path: Path) -> None:
    targets = [-number for number in numbers]
    section = section_of(write_predictions(tmp_path, "values", target=targets, prediction=numbers))
    assert "Residuals" in [figure.title for figure in section.figures]


def test_files_that_are_not_what_was_written_are_refused(tmp_path: Path) -> None:
    file = write_predictions(tmp_path, "class", classes=["a"], target=["a"], prediction=["a"])
    about = read_about(file)
    metadata = {b"trainer.predictions": json.dumps({**about, "format": 1}).encode()}
    other = pa.table({"row": [1]}).replace_schema_metadata(metadata)
    parquet.write_table(other, file)
    with pytest.raises(CheckpointError, match=r"test\.predictions\.parquet: is damaged"):
        section_of(file)

    wrong = {b"trainer.predictions": json.dumps({**about, "classes": [{}]}).encode()}
    parquet.write_table(other.replace_schema_metadata(wrong), file)
    with pytest.raises(CheckpointError, match=r"is damaged: classes"):
        read_about(file)


def check_damage(kind: Kind, folder: Path, make: Callable[[Path], Section]) -> None:
    """Check that flipped bits of a file of predictions are its damage or no error when a section is made of it."""
    classes = [HOSTILE, "b"] if kind in ("class", "labels") else None
    file = write_predictions(folder, kind, classes=classes, inputs={0: {"text": "x"}}, **KINDS[kind])
    content, random, refused = file.read_bytes(), np.random.default_rng(0), 0
    for place in random.integers(0, len(content), 60).tolist():
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(random.integers(8))
        file.write_bytes(bytes(damaged))
        try:
            make(file)
        except CheckpointError as error:
            refused += str(file) in str(error)
    assert refused > 10


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_an_error_of_the_file(kind: Kind, tmp_path: Path) -> None:
    check_damage(kind, tmp_path, section_of)
