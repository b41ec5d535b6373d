"""Samples come to their splits, and what is left out is said."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer.data.splits import (
    Sample,
    SplitLayout,
    assign_split,
    cache_key,
    cached_folder,
    read_splits,
    split_in_memory,
    split_schema,
    write_splits,
)
from trainer.errors import ConfigError, DataError

SHARES = {"validation": 0.1, "test": 0.1}
OWN = {"train": "a", "validation": None, "test": None}


def texts(numbers: range, **changes: Any) -> Iterator[Sample]:
    for number in numbers:
        yield Sample(number, {"text": f"number {number}", "label": str(number % 2), **changes})


def written(folder: Path, given: dict[str, Any], origins: dict[str, Any], roles: tuple[str, ...]) -> dict[str, Any]:
    division = SplitLayout.from_arguments(given, SHARES)

    def nothing(origin: str) -> DataError:
        return DataError(f"nothing in {origin}")

    write_splits(folder, division, split_schema(roles), origins, "rows without a text", nothing)
    return read_splits(folder, division, lambda split, row: f"{split}:{row}")


@pytest.mark.parametrize(
    ("given", "names", "lent"),
    [
        (OWN, ["train", "validation", "test"], ["validation", "test"]),
        (OWN | {"validation": "b"}, ["train", "validation", "test"], ["test"]),
        (OWN | {"validation": "b", "test": "c"}, ["train", "validation", "test"], []),
    ],
)
def test_splits_are_those_given_and_those_with_a_share(
    given: dict[str, Any], names: list[str], lent: list[str]
) -> None:
    division = SplitLayout.from_arguments(given, SHARES)

    assert division.names == names
    assert division.held_out == lent
    assert SplitLayout.from_arguments(given, SHARES | {"test": 0}).names == [
        n for n in names if n != "test" or given["test"]
    ]


def test_a_sum_of_shares_that_are_not_needed_is_no_fault() -> None:
    assert SplitLayout.from_arguments(OWN | {"test": "c"}, {"validation": 0.5, "test": 0.5}).held_out == ["validation"]
    with pytest.raises(ConfigError, match=r"^split: leaves no rows for training"):
        SplitLayout.from_arguments(OWN, {"validation": 0.5, "test": 0.5})


def test_samples_follow_their_key_where_they_have_one(tmp_path: Path) -> None:
    samples = [Sample(row, {"text": f"number {row}"}, f"key {row % 100}") for row in range(300)]

    splits = written(tmp_path, OWN, {"train": samples}, ("text",))

    for split, rows in splits.items():
        assert {assign_split(f"key {row % 100}", SHARES) for row in rows["row"]} == {split}


def test_small_data_is_divided_likewise(tmp_path: Path) -> None:
    schema = split_schema(("text", "label"))

    found = split_in_memory(schema, texts(range(300)), SHARES)

    expected = written(tmp_path, OWN, {"train": texts(range(300))}, ("text", "label"))
    assert {split: rows.to_dict() for split, rows in found.items()} == {
        split: rows.to_dict() for split, rows in expected.items()
    }
    assert found["train"].features == expected["train"].features


@pytest.mark.parametrize(
    ("role", "rare", "usual", "noun"),
    [("label", "x", "a", "label"), ("labels", ["a", "x"], ["a"], "label"), ("tags", ["x"], ["a"], "tag")],
)
def test_a_class_that_stays_in_no_training_row_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, role: str, rare: Any, usual: Any, noun: str
) -> None:
    lent = [number for number in range(300) if assign_split(f"number {number}", SHARES) == "test"]
    samples = [Sample(n, {"text": f"number {n}", role: rare if n in lent[:2] else usual}) for n in range(300)]

    splits = written(tmp_path, OWN, {"train": samples}, ("text", role))

    assert splits["test"]["row"][:] == lent[2:]
    told = f"data.test: dropped 2 rows with a {noun} that occurs in no training row; the first is test:{lent[0]}"
    assert caplog.record_tuples == [("trainer.data.splits", logging.WARNING, told)]


def test_a_class_of_a_file_of_its_own_stays(tmp_path: Path) -> None:
    origins = {"train": texts(range(300)), "validation": texts(range(9), label="rare")}

    assert set(written(tmp_path, OWN | {"validation": "b"}, origins, ("text", "label"))["validation"]["label"]) == {
        "rare"
    }


def test_a_split_of_such_rows_alone_is_refused(tmp_path: Path) -> None:
    samples = (Sample(n, {"text": f"number {n}", "label": str(n)}) for n in range(300))

    with pytest.raises(
        DataError, match=r"^data\.validation: contains only rows with a label that occurs in no training row"
    ):
        written(tmp_path, OWN, {"train": samples}, ("text", "label"))


@pytest.mark.parametrize(
    ("origins", "message"),
    [
        ({"train": []}, "nothing in train"),
        ({"train": [Sample(1, None)]}, "nothing in train"),
        (
            {"train": [Sample(1, {"text": "a"})]},
            "data.validation: none of the 1 rows of data.train was assigned to this split.",
        ),
    ],
)
def test_an_empty_split_is_refused(tmp_path: Path, origins: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match="^" + re.escape(message)):
        written(tmp_path, OWN, origins, ("text",))


def test_a_folder_is_filled_once_and_complete_or_not_at_all(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        cached_folder(str(tmp_path), "kind", "key", fail)
    assert list((tmp_path / "kind").iterdir()) == []

    folder = cached_folder(str(tmp_path), "kind", "key", lambda folder: (folder / "whole").touch())
    assert cached_folder(str(tmp_path), "kind", "key", fail) == folder == tmp_path / "kind" / "key"
    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_another_process_may_be_faster(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "mine").touch()
        (tmp_path / "kind" / "key").mkdir()
        (tmp_path / "kind" / "key" / "theirs").touch()

    folder = cached_folder(str(tmp_path), "kind", "key", write)

    assert [path.name for path in folder.iterdir()] == ["theirs"]
    assert [path.name for path in (tmp_path / "kind").iterdir()] == ["key"]


def test_the_key_of_a_folder_tells_roles_apart() -> None:
    keys = {cache_key("a", roles, *more) for roles in (["text"], ["text", "label"], []) for more in ((), ("/data",))}

    assert len(keys) == 6
    assert all(re.fullmatch(r"a-[0-9a-f]{12}", key) for key in keys)


def test_what_was_left_out_is_said_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(tmp_path, OWN, {"train": [*texts(range(100)), Sample(7, None), Sample(8, None)]}, ("text",))

    assert json.loads((tmp_path / "dropped.json").read_text()) == [["train", "rows without a text", 2, 7]]
    assert caplog.messages == ["data.train: dropped 2 rows without a text; the first is train:7"]
