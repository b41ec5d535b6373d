"""Columns of a table in their roles: what is taken, what is left out, and one message for what cannot be used."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from trainer.data.splits import Sample
from trainer.data.table import Record, Table, describe_no_rows, validate_columns
from trainer.errors import ConfigError, DataError

COLUMNS: dict[str, Any] = {
    "text": "t", "label": "l", "value": ["v", "w"], "score": "s", "words": "ws", "tags": "ts", "labels": None,
    "features": None, "image": "i",
}  # fmt: skip


def column(role: str) -> str:
    return f"data.{role}"


def table(*roles: str, known: Sequence[str] = (), **changes: Any) -> Table:
    return Table.for_roles(COLUMNS | changes, roles, column, "|", known)


def records(*rows: Sequence[Any]) -> list[Record]:
    return [(number, f"a.csv, row {number}", row) for number, row in enumerate(rows, 1)]


def samples(table: Table, *rows: Sequence[Any], folder: Path | None = None) -> list[Sample]:
    table.detect_numeric(lambda: iter(records(*rows)))
    return list(table.samples(iter(records(*rows)), [folder] if folder else []))


def test_columns_stand_in_the_order_of_the_roles() -> None:
    found = table("value", "text", "labels", "other")

    assert found.columns == ["v", "w", "t"]
    assert found.named_by == "data.value and data.text"
    assert table("text", "label", "score").named_by == "data.text, data.label and data.score"


def test_features_are_what_no_other_role_asked_for_takes() -> None:
    known = ["id", "t", "l", "v", "w", "s"]

    assert table("features", "label", known=known).names["features"] == ["id", "t", "v", "w", "s"]
    assert table("value", "features", known=known).names["features"] == ["id", "t", "l", "s"]
    assert table("features", known=known, features=["s", "id"]).names["features"] == ["s", "id"]
    assert table("features", known=known, features="s").names["features"] == ["s"]


def test_one_column_in_two_roles_is_refused() -> None:
    with pytest.raises(DataError, match=r"^data\.features: is the column of data\.label too\."):
        table("label", "features", features=["s", "l"])
    with pytest.raises(DataError, match=r"^data\.features: no column is left for the features, got \['l'\]\."):
        table("label", "features", known=["l"])
    assert table("score", features=["s"]).columns == ["s"]


def test_a_feature_is_a_number_where_every_cell_is_one_or_empty() -> None:
    found = table("features", known=["n", "c", "e", "j"])

    rows = [("1", "a", "", 1), (" ", "", None, None), ("-2e3", " b ", float("nan"), "x"), ("nan", "3", " ", 2.0)]
    values = [sample.values["features"] for sample in samples(found, *rows) if sample.values]

    assert found.numeric == {"n": True, "c": False, "e": True, "j": False}
    assert values == [
        {"n": 1.0, "c": "a", "e": None, "j": "1"},
        {"n": None, "c": None, "e": None, "j": None},
        {"n": -2000.0, "c": " b ", "e": None, "j": "x"},
        {"n": None, "c": "3", "e": None, "j": "2"},
    ]


def test_a_column_of_numbers_with_a_few_others_is_told(caplog: pytest.LogCaptureFixture) -> None:
    samples(table("features", known=["a", "b"]), ("1", "x"), ("2", "1"), ("NA", "y"), ("?", ""))
    samples(table("features", known=["a"]), ("1",), ("2",), ("NA",))

    told = (
        "data.features: column 'a' is read as text: 2 of its 3 cells are numbers, "
        "the first other cell is 'NA' in a.csv, row 3"
    )
    assert caplog.record_tuples == [("trainer.data.table", logging.WARNING, told)]


def test_what_lacks_something_is_a_sample_without_values() -> None:
    found = samples(table("text", "score"), ("a", "1"), ("", "1"), ("b", None), ("c", 0))

    assert found == [
        Sample(1, {"text": "a", "score": 1.0}),
        Sample(2, None),
        Sample(3, None),
        Sample(4, {"text": "c", "score": 0.0}),
    ]


def test_an_image_is_found_beside_the_file_that_names_it(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"same")

    first, second, third = samples(table("image"), ("a.png",), (str(tmp_path / "b.png"),), (b"same",), folder=tmp_path)

    assert first.values == {"image": {"bytes": None, "path": str(tmp_path / "a.png")}}
    assert third.values == {"image": {"bytes": b"same", "path": None}}
    assert first.key == second.key == third.key


@pytest.mark.parametrize(
    ("roles", "rows", "message"),
    [
        (
            ("value",),
            [("1", "2"), ("3", "four")],
            "a.csv, row 2, column 'w': expected a number, got 'four'. Values and",
        ),
        (("value",), [("inf", "1")], "a.csv, row 1, column 'v': expected a finite number, got 'inf'."),
        (("score",), [("x",)], "a.csv, row 1, column 's': expected a number, got 'x'."),
        (("text",), [(["a"],)], "a.csv, row 1, column 't': expected a string, got list. Texts and labels are strings"),
        (("words", "tags"), [("a|b", "O")], "a.csv, row 1, data.tags: expected a tag for each of 2 words, got 1."),
        (
            ("tags",),
            [("O O",)],
            "a.csv, row 1, column 'ts': a tag contains white space, got 'O O'; check data.list_separator",
        ),
        (
            ("image",),
            [("no.png",)],
            "a.csv, row 1, column 'i': the image cannot be read: No such file or directory, got",
        ),
        (
            ("features",),
            [("1",), ([1],)],
            "a.csv, row 2, column 'x': expected a string, got list. Features are numbers",
        ),
    ],
)
def test_what_cannot_be_used_is_one_message_with_its_place(
    roles: tuple[str, ...], rows: list[tuple[Any, ...]], message: str
) -> None:
    with pytest.raises(DataError, match="^" + re.escape(message)) as caught:
        samples(table(*roles, known=["x"]), *rows)

    assert len(caught.value.messages) == 1


def test_rows_of_one_column_have_as_many_values() -> None:
    with pytest.raises(DataError, match=r"^a\.csv, row 2, data\.value: expected 2 values as in the first row, got 1\."):
        samples(table("value", value="v"), ([1, 2],), ([3],))


def test_a_feature_that_is_no_number_outside_of_training_is_refused() -> None:
    found = table("features", known=["x"])
    found.detect_numeric(lambda: iter(records(("1",), ("",))))

    with pytest.raises(
        DataError, match=r"^a\.csv, row 1, column 'x': .* got 'y'; every training row has a number here\."
    ):
        list(found.samples(iter(records(("y",)))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"txt": "a"}, "columns.txt: unknown role, got 'a'. Did you mean text."),
        ({"text": ["a", "b"]}, "columns.text: must be one column, got ['a', 'b']."),
        ({"text": ""}, "columns.text: must be a column or a list of distinct ones, got ''."),
        ({"value": []}, "columns.value: must be a column or a list of distinct ones, got []."),
        ({"features": ["a", "a"]}, "columns.features: must be a column or a list of distinct ones, got ['a', 'a']."),
    ],
)
def test_columns_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    validate_columns(COLUMNS, list(COLUMNS))
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        validate_columns(COLUMNS | changes, list(COLUMNS))


def test_every_fault_of_the_columns_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        validate_columns({"text": [], "foo": None}, ["text", "label"])

    assert len(caught.value.messages) == 3


def test_what_is_wrong_where_nothing_is_left() -> None:
    assert describe_no_rows(table("text", "features", known=["x"])) == "no row has data.text"
    assert describe_no_rows(table("text", "label")) == "no row has both data.text and data.label"
    assert describe_no_rows(table("text", "label", "score")) == "no row has all of data.text, data.label and data.score"
