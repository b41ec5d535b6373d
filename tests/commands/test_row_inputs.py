"""An evaluation keeps the inputs of its worst rows with the predictions."""

from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from PIL import Image

from tests.support.jobs import train, working_in, write_roles
from trainer.commands.row_inputs import describe_input, worst_inputs_kept
from trainer.files.mapped import MappedRows
from trainer.predictions import predictions_schema, predictions_writer, read_about, read_inputs
from trainer.protocols import TaskInfo
from trainer.report.mistakes import mistake_section
from trainer.task.image_classification import ImageClassification
from trainer.task.span_classification import SpanClassification
from trainer.task.tabular_regression import TabularRegression


@pytest.mark.parametrize(
    ("task", "texts"), [("pair_classification", 2), ("sentence_embedding", 2), ("token_classification", 1)]
)
def test_texts_are_what_the_model_read(task: str, texts: int, tmp_path: Path) -> None:
    with working_in(tmp_path):
        data = [f"task={task}", *write_roles(tmp_path), "loader.limit=20", "task.max_length=40"]
        assert train(tmp_path / "run", *data, "train.duration=1") == 0
    kept = read_inputs(tmp_path / "run" / "eval" / "test.predictions.parquet")

    assert len(kept) == 20
    assert all("[" not in values["text"] and "##" not in values["text"] for values in kept.values())
    assert all(len(values["text"].split(" | ")) == texts for values in kept.values())


def test_missed_and_wrong_spans_are_shown_as_words(tmp_path: Path) -> None:
    task = SpanClassification(max_length=12, vocab_size=150, tokenizer=None, lowercase=False, span_end="exclusive")
    texts = ["the bank of China", "Anna <b>met</b> Ben"]
    labels = [[{"start": 4, "end": 17, "label": "ORG"}], [{"start": 0, "end": 4, "label": "PER"}]]
    raw = {"text": texts, "spans": labels}
    task.fit(Dataset.from_dict(raw))
    encoded = Dataset.from_dict({name: list(values) for name, values in task.encode(raw).items()})
    (bank, anna) = (list(map(int, row[:2])) for row in encoded["spans"])
    name, met = (f"{bank[0]}:{bank[1]}", f"{anna[1] + 2}:{anna[1] + 2}")
    rows = [
        {"row": 0, "target": [f"{name}:ORG"], "prediction": [], "num_right": 0, "loss": 1.0},
        {"row": 1, "target": ["1:1:PER"], "prediction": ["1:1:PER", f"{met}:PER"], "num_right": 1, "loss": 2.0},
    ]
    schema = predictions_schema("spans", several_values=False, about={"classes": ["ORG", "PER"], "split": "test"})
    file = tmp_path / "test.predictions.parquet"
    columns = {field.name: [row.get(field.name) for row in rows] for field in schema} | {"num_targets": [1, 1]}
    with (
        predictions_writer(file, schema) as writer,
        worst_inputs_kept(writer, "spans", MappedRows(encoded.data), task) as write,
    ):
        write(pa.table(columns, schema=schema))

    kept = read_inputs(file)
    assert {key: value for key, value in kept[0].items() if key != "text"} == {name: "bank of China"}
    assert [key for key in kept[1] if key != "text"] == [met]
    worst = mistake_section(file, read_about(file)).tables[0]
    assert [row[worst.columns.index("answer")] for row in worst.rows] == [
        f"1 right; wrong {kept[1][met]} (PER)",
        "0 right; missed bank of China (ORG)",
    ]


@pytest.mark.parametrize("is_fold", [False, True])
def test_folds_keep_the_rows_whose_label_is_least_likely(is_fold: bool, tmp_path: Path) -> None:
    class Rows:
        def __getitem__(self, places: slice) -> dict[str, list[list[int]]]:
            return {"input_ids": [[places.start]]}

    class Tokenizer:
        decode = str

    class Texts:
        tokenizer = Tokenizer

    class Job:
        texts = Texts

        @staticmethod
        def info() -> Any:
            return TaskInfo(num_outputs=3, class_names=["a", "b", "c"])

    hard = {"probabilities": [0.01, 0.5, 0.49], "loss": 4.6}
    wrong = {"probabilities": [0.05, 0.95, 0.0], "loss": 3.0}
    rows = [{"row": row, "target": "a", "prediction": "b", **(wrong if row == 130 else hard)} for row in range(150)]
    schema = predictions_schema("class", several_values=False, about={"classes": ["a", "b", "c"]})
    file = tmp_path / "test.predictions.parquet"
    with (
        predictions_writer(file, schema) as writer,
        worst_inputs_kept(writer, "class", Rows(), Job(), is_fold=is_fold) as write,  # type: ignore[arg-type]
    ):
        for part in (rows[:100], rows[100:]):
            write(pa.Table.from_pylist([each | {"num_targets": 1} for each in part], schema))
    kept = read_inputs(file)
    assert len(kept) == (100 if is_fold else 20)
    assert kept.get(130) == ({"text": "[130]"} if is_fold else None)


def test_a_text_is_shortened() -> None:
    class Tokenizer:
        def decode(self, ids: list[int]) -> str:
            return "x" * len(ids)

    class Texts:
        tokenizer = Tokenizer()

    class Job:
        texts = Texts()

    assert describe_input(Job(), {"input_ids": [1] * 900})["text"] == "x" * 499 + "…"  # type: ignore[arg-type]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pictures_are_small(channels: Literal[1, 3], mode: str) -> None:
    task = ImageClassification(
        size=[100, 200], channels=channels, resize="stretch", mean="auto", std="auto", augment={}
    )
    task.images.size, task.images.channels = (100, 200), channels
    pixels = np.full((100, 200, channels), 77, dtype=np.uint8)
    small = Image.open(BytesIO(b64decode(describe_input(task, {"pixels": pixels.tobytes()})["image"])))

    assert (small.mode, small.size) == (mode, (96, 48))
    assert np.asarray(small).min() == np.asarray(small).max() == 77


def test_columns_are_shown_as_the_values_that_the_model_read() -> None:
    task = TabularRegression(max_categories=2)
    colors = ["red", None, "green"]
    # In the order of their names, in which older versions of pyarrow put the fields of a struct.
    rows = [{"color\nname": color, "fixed": 1, "size": 1.5 + place} for place, color in enumerate(colors)]
    task.table.fit(Dataset.from_list([{"features": row} for row in rows]), ["features"])
    encoded = task.table.encode([*rows, {"color\nname": "blue", "fixed": 1, "size": 1e6 / 3}])["features"]

    shown = [describe_input(task, {"features": features.tolist()}) for features in encoded]
    values = [("1.5", "red"), ("2.5", "(missing)"), ("3.5", "green"), ("333333", "(other)")]
    assert shown == [{"columns": f"color name: {color}\nsize: {size}"} for size, color in values]


def test_the_columns_of_a_wide_table_are_counted() -> None:
    task = TabularRegression(max_categories=2)
    rows = [{f"column {index:02}": float(row) for index in range(50)} for row in range(3)]
    task.table.fit(Dataset.from_list([{"features": row} for row in rows]), ["features"])
    lines = describe_input(task, {"features": task.table.encode(rows)["features"][0]})["columns"].splitlines()

    assert lines[39:] == ["column 39: 0", "more columns: 10"]


def test_a_task_without_texts_and_images_has_no_inputs() -> None:
    assert describe_input(object(), {"features": [1.0]}) == {}  # type: ignore[arg-type]
