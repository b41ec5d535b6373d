"""What a model read in the worst rows is kept with its predictions."""

from base64 import b64decode, b64encode
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from PIL import Image

from trainer.commands.row_inputs import describe_input, worst_inputs_kept
from trainer.data.encode import Encoded
from trainer.errors import DataError
from trainer.predictions import predictions_schema, predictions_writer, read_batches, read_inputs


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"text": "one", "label": "a"}, "one"),
        ({"text": "one", "text_pair": "two"}, "one | two"),
        ({"words": ["a", "b"], "tags": ["O", "O"]}, "a b"),
        ({"features": {"size": 1.5, "color": None}, "label": "a"}, "size=1.5, color=None"),
        ({"text": "x" * 900}, "x" * 499 + "…"),
        ({"label": "a"}, None),
        ({}, None),
    ],
)
def test_texts_of_every_task(row: dict[str, Any], text: str | None) -> None:
    assert describe_input(row).get("text") == text


def test_pictures_are_small(tmp_path: Path) -> None:
    file = BytesIO()
    Image.new("RGB", (640, 320), "red").save(file, "PNG")
    kept = describe_input({"image": {"bytes": file.getvalue(), "path": None}, "label": "a"})["image"]
    small = Image.open(BytesIO(b64decode(kept)))

    assert small.size == (96, 48)
    assert b64encode(b64decode(kept)).decode() == kept


class Moved:
    """A source whose files are gone since the rows were encoded."""

    fingerprint = ""

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        raise DataError("data.test: no such file.")

    def describe_row(self, split: str, row: int) -> str:
        return ""

    def describe_role(self, role: str) -> str:
        return ""


def test_moved_data_costs_the_inputs_but_not_the_predictions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = Dataset.from_dict({"row": [0, 1]})
    encoded = Encoded({"test": rows}, "", tmp_path, warnings=[], unlogged=[], source=Moved())
    file, schema = (
        tmp_path / "test.predictions.parquet",
        predictions_schema("values", several_values=False, about={"classes": None}),
    )
    table = pa.Table.from_pylist([{"row": 0, "loss": 1.0}, {"row": 1, "loss": 2.0}], schema)
    with (
        caplog.at_level("INFO"),
        predictions_writer(file, schema) as writer,
        worst_inputs_kept(writer, "values", encoded, "test", ("text",)) as write,
    ):
        write(table)

    assert read_inputs(file) == {}
    assert next(iter(read_batches(file, ["row"]))).num_rows == 2
    assert "the worst rows is not kept: data.test: no such file." in caplog.text
