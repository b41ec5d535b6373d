import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from trainer.data.splits import Sample
from trainer.data.table import Record, Table, describe_no_rows, in_role_order
from trainer.errors import ConfigError, DataError

COLUMNS: dict[str, Any] = {
    "text": "t", "label": "l", "value": ["v", "w"], "score": "s", "words": "ws", "tags": "ts", "labels": None,
    "spans": "spans", "features": None, "image": "i",
}  # fmt: skip


def describe_role(role: str) -> str:
    return f"data.{role}"


def table(*roles: str, available: Sequence[str] = (), **changes: Any) -> Table:
    return Table.for_roles(COLUMNS | changes, roles, describe_role, "|", available)


def records(*rows: Sequence[Any]) -> list[Record]:
    return [(number, f"a.csv, row {number}", row) for number, row in enumerate(rows, 1)]


def read_samples(table: Table, *rows: Sequence[Any], folder: Path | None = None) -> list[Sample]:
    table.scan(lambda: iter(records(*rows)))
    return list(table.samples(iter(records(*rows)), [folder] if folder else []))


def test_columns_are_in_the_order_of_the_roles() -> None:
    some_roles = table("value", "text", "labels", "other")

    assert some_roles.columns == ["v", "w", "t"]
    assert some_roles.column_remedy == "set data.value and data.text"
    assert table("text", "label", "score").column_remedy == "set data.text, data.label and data.score"


def test_features_are_the_columns_without_another_requested_role() -> None:
    available = ["id", "t", "l", "v", "w", "s"]

    assert table("features", "label", available=available).names["features"] == ["id", "t", "v", "w", "s"]
    assert table("value", "features", available=available).names["features"] == ["id", "t", "l", "s"]
    assert table("features", available=available, features=["s", "id"]).names["features"] == ["s", "id"]
    assert table("features", available=available, features="s").names["features"] == ["s"]


def test_column_with_two_requested_roles_is_rejected() -> None:
    with pytest.raises(DataError, match=r"^data\.features: is the column of data\.label too\."):
        table("label", "features", features=["s", "l"])
    with pytest.raises(DataError, match=r"^data\.features: no column is left for the features, got \['l'\]\."):
        table("label", "features", available=["l"])
    assert table("score", features=["s"]).columns == ["s"]


def test_feature_is_numeric_if_every_cell_is_a_number_or_empty() -> None:
    features = table("features", available=["n", "c", "e", "j"])

    rows = [("1", "a", "", 1), (" ", "", None, None), ("-2e3", " b ", float("nan"), "x"), ("nan", "3", " ", 2.0)]
    values = [sample.values["features"] for sample in read_samples(features, *rows) if sample.values]

    assert features.numeric == {"n": True, "c": False, "e": True, "j": False}
    assert values == [
        {"n": 1.0, "c": "a", "e": None, "j": "1"},
        {"n": None, "c": None, "e": None, "j": None},
        {"n": -2000.0, "c": " b ", "e": None, "j": "x"},
        {"n": None, "c": "3", "e": None, "j": "2"},
    ]


def test_mostly_numeric_column_of_texts_is_reported() -> None:
    columns = table("features", available=["a", "b c"])
    read_samples(columns, ("1", "x"), ("2", "1"), ("NA", "y"), ("?", ""))
    one = table("features", available=["a"])
    read_samples(one, ("1",), ("2",), ("NA",))

    warning = (
        "data.features: column 'a' is read as text: 2 of 3 cells are numbers, the first other cell is 'NA' in "
        "{place}. Correct such cells, or empty them. To leave it out, "
    )
    assert columns.warnings == []
    assert one.warnings == [(f"{warning}list the other columns in data.columns.features.", 3)]
    more = table("features", available=["a", "b c", "d"])
    read_samples(more, ("1", "x", "y"), ("2", "x", "y"), ("NA", "x", "y"))
    assert more.warnings == [(f"{warning}set 'data.columns.features=[\"b c\",d]'.", 3)]


def test_incomplete_record_becomes_a_sample_without_values() -> None:
    assert read_samples(table("text", "score"), ("a", "1"), ("", "1"), ("b", None), ("c", 0)) == [
        Sample(1, {"text": "a", "score": 1.0}),
        Sample(2, None),
        Sample(3, None),
        Sample(4, {"text": "c", "score": 0.0}),
    ]


def test_image_path_is_relative_to_the_file_that_contains_it(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"same")

    rows = [("a.png",), (str(tmp_path / "b.png"),), (b"same",)]
    first, second, third = read_samples(table("image"), *rows, folder=tmp_path)

    assert first.values == {"image": {"bytes": None, "path": str(tmp_path / "a.png")}}
    assert third.values == {"image": {"bytes": b"same", "path": None}}
    assert first.key == second.key == third.key


@pytest.mark.parametrize(
    ("roles", "rows", "message"),
    [
        (("value",), [("1", "2"), ("3", "four")], "a.csv, row 2, column 'w': expected a number, got 'four'. Write a"),
        (("value",), [("inf", "1")], "a.csv, row 1, column 'v': expected a finite number, got 'inf'."),
        (("score",), [("x",)], "a.csv, row 1, column 's': expected a number, got 'x'."),
        (("text",), [(["a"],)], "a.csv, row 1, column 't': expected a string, got list. Texts are strings,"),
        (("words", "tags"), [("a|b", "O")], "a.csv, row 1, data.tags: expected a tag for each of 2 words, got 1."),
        (("labels",), [([1.0, 0.0],)], "a.csv, row 1, column 'l': expected the names of the labels, got a vector of"),
        (("labels",), [("[0, 1, 0]",)], "a.csv, row 1, column 'l': expected the names of the labels, got a vector of"),
        (("labels",), [("0|0",)], "a.csv, row 1, column 'l': expected the names of the labels, got a vector of"),
        (("tags",), [("O O",)], "a.csv, row 1, column 'ts': a tag contains white space, got 'O O'; check data.list"),
        (("image",), [("no.png",)], "a.csv, row 1, column 'i': the image cannot be read: No such file or directory"),
        (("features",), [("1",), ([1],)], "a.csv, row 2, column 'x': expected a string, got list. Features are"),
    ],
)
def test_unusable_cell_is_one_message_with_its_place(
    roles: tuple[str, ...], rows: list[tuple[Any, ...]], message: str
) -> None:
    with pytest.raises(DataError, match="^" + re.escape(message)) as caught:
        read_samples(table(*roles, available=["x"], labels="l"), *rows)

    assert len(caught.value.messages) == 1


def test_rows_with_different_numbers_of_values_are_rejected() -> None:
    with pytest.raises(DataError, match=r"^a\.csv, row 2, data\.value: expected 2 values as in the first row, got 1\."):
        read_samples(table("value", value="v"), ([1, 2],), ([3],))


def test_text_in_a_feature_that_is_numeric_in_training_is_rejected() -> None:
    features = table("features", available=["x"])
    features.scan(lambda: iter(records(("1",), ("",))))

    with pytest.raises(DataError, match=r"^a\.csv, row 1, column 'x': .* got 'y'; every training row has a number"):
        list(features.samples(iter(records(("y",)))))


def test_features_that_cannot_be_used_are_named_once_each() -> None:
    with pytest.raises(DataError) as caught:
        read_samples(table("features", available=["x", "y", "z"]), *[([1], "a", {"b": 1})] * 3, ([1], "a", "b"))

    remedy = "Features are numbers, texts or empty; list the columns to use in data.columns.features."
    assert caught.value.messages == (
        f"a.csv, row 1, column 'x': expected a string, got list. {remedy} The same in 3 more.",
        "a.csv, row 1, column 'z': expected a string, got dict. The same in 2 more.",
    )


def test_text_of_a_boolean_is_a_number_in_a_column_of_numbers() -> None:
    features = table("features", available=["x"])
    features.scan(lambda: iter(records((True,), (False,))))

    samples = features.samples(iter(records((True,), ("True",), ("false",))))
    assert [sample.values and sample.values["features"]["x"] for sample in samples] == [1.0, 1.0, 0.0]


def test_several_columns_without_a_name_are_no_features() -> None:
    spreadsheet = table("features", available=["a", "", ""])

    assert spreadsheet.columns == ["a"]
    assert [warning.message for warning in spreadsheet.warnings] == [
        "data.features: columns without a name are left out."
    ]
    assert table("features", available=["a", ""]).columns == ["a", ""]


def test_every_wrong_role_is_reported() -> None:
    in_role_order(COLUMNS, list(COLUMNS))
    with pytest.raises(ConfigError) as caught:
        in_role_order({"txt": "a", "foo": None}, ["text", "label"])

    assert [message.partition(",")[0] for message in caught.value.messages] == [
        "columns.txt: unknown role",
        "columns.foo: unknown role",
        "columns.text: is missing. Set data.columns.text=null.",
        "columns.label: is missing. Set data.columns.label=null.",
    ]
    assert "Did you mean text?" in caught.value.messages[0]


def test_description_of_a_table_without_complete_rows_names_the_required_roles() -> None:
    assert describe_no_rows(table("text", "features", available=["x"])) == "no row has data.text"
    assert describe_no_rows(table("text", "label")) == "no row has both data.text and data.label"
    roles = table("text", "label", "score")
    assert describe_no_rows(roles) == "no row has all of data.text, data.label and data.score"
