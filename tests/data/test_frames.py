"""Tables in memory: every kind becomes the same columns, and odd ones are reported."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow
import pytest
from pyarrow import parquet

from trainer.data.frames import to_rows, to_table, write_table
from trainer.errors import DataError

ROWS = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}, {"text": "c", "label": "x"}]
FRAME = pd.DataFrame(ROWS)


def _labeled() -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
    return datasets.Dataset.from_dict({"text": ["c", "a", "b"], "label": [0, 0, 1]}, features=features)


class Exported:
    """A data frame of another library, which offers its columns through Arrow's interface in the types of polars."""

    def __init__(self, *, is_category: bool = False) -> None:
        # The process crashes if pyarrow before 25 exports views; it reads them.
        string = pyarrow.string_view() if int(pyarrow.__version__.partition(".")[0]) >= 25 else pyarrow.large_string()
        table = pyarrow.Table.from_pylist(ROWS).cast(pyarrow.schema(dict.fromkeys(ROWS[0], string)))
        if is_category:
            categories = pyarrow.array(["y", "x"], string)
            codes = pyarrow.array([1, 0, 1], pyarrow.uint32())
            table = table.set_column(1, "label", pyarrow.DictionaryArray.from_arrays(codes, categories))
        self.table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize(
    "data",
    [
        ROWS,
        {"text": ["a", "b", "c"], "label": np.array(["x", "y", "x"])},
        pyarrow.Table.from_pylist(ROWS),
        FRAME,
        FRAME.set_index(pd.Index([7, 7, 9], name="text")),
        FRAME.set_index(pd.MultiIndex.from_tuples([(1, "a"), (1, "b"), (2, "c")])),
        FRAME.astype({"label": "category", "text": "string"}),
        pd.concat([FRAME[2:], FRAME[:2]]).sort_index(),
        datasets.Dataset.from_list(ROWS),
        _labeled().select([1, 2, 0]),
        Exported(),
        Exported(is_category=True),
    ],
)
def test_every_kind_of_table_has_the_same_rows(data: Any) -> None:
    assert to_rows("data", data) == ROWS


def test_missing_values_are_null() -> None:
    table = pd.DataFrame({"a": [1.5, np.nan], "b": ["x", None], "c": pd.array([1, None], dtype="Int64")})
    assert to_rows("data", table)[1] == {"a": None, "b": None, "c": None}
    assert to_rows("data", {"a": np.array([1.5, np.nan])}) == [{"a": 1.5}, {"a": None}]
    assert to_rows("data", [{"a": 1}, {"b": 2}]) == [{"a": 1, "b": None}, {"a": None, "b": 2}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (5, "data: must be a data frame"),
        ("my.csv", "data: must be a data frame"),
        (
            datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
            "data: is not one table, got 'IterableDataset'. Pass a",
        ),
        (
            datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)),
            "data: is not one table, got 'DatasetDict'. Pass its",
        ),
        (FRAME.iloc[:, 0], "data: is not one table, got 'Series'. Pass a data frame, such as"),
        (np.zeros((2, 2)), "data: is not one table, got 'ndarray'. Name its columns: pass pandas.DataFrame(data, co"),
        (pd.DataFrame({"c": [1j]}), "data: a column cannot be read (Unsupported numpy type 15 Conversion failed for c"),
        ([], "data: has no rows. Pass at least one row."),
        (FRAME[:0], "data: has no rows. Pass at least one row."),
        (pd.DataFrame({0: ["a"]}), "data: the name of a column must be a text, got 0. Rename the columns of data."),
        ([{"": "a"}], "data: the name of a column must be a text, got ''. Rename the columns of data."),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "data: has several columns 'a'. Rename the columns of data."),
        ({"a": [1, 2], "b": [1]}, "data: a column cannot be read ("),
        ({"a": [1], "b": "text"}, "data: a column cannot be read (a column must be a list, got str)."),
        ({"a": 1.5, "b": "text"}, "data: is one row and not a table, got 'dict'. Pass a list of rows: [{...}]."),
        ([{"a": 1}, {"a": "b"}], "data: a column cannot be read ("),
        ([{"a": object()}], "data: a column cannot be read ("),
    ],
)
def test_what_is_no_table_is_reported(data: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        to_table("data", data)
    assert str(caught.value).startswith(message)


def test_the_file_depends_only_on_the_rows(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.parquet" for number in range(3)]
    for file, data in zip(files, (ROWS, FRAME.set_index(pd.Index([3, 1, 2])), FRAME[::-1]), strict=True):
        write_table(file, to_table("data", data))
    first, same, other = (file.read_bytes() for file in files)
    assert first == same != other
    assert parquet.read_table(files[0]).to_pylist() == ROWS


def test_classes_in_lists_become_their_names() -> None:
    tags = datasets.List(datasets.ClassLabel(names=["O", "B-x"]))
    features = datasets.Features({"words": datasets.List(datasets.Value("string")), "tags": tags})
    rows = {"words": [["a", "b"], ["c"], None], "tags": [[0, 1], [-1], None]}
    assert to_rows("data", datasets.Dataset.from_dict(rows, features=features)) == [
        {"words": ["a", "b"], "tags": ["O", "B-x"]},
        {"words": ["c"], "tags": [None]},
        {"words": None, "tags": None},
    ]
