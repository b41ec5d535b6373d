import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.split_layout import SplitLayout
from trainer.data.splits import (
    Sample,
    SplitWriter,
    assign_split,
    drop_unseen_classes,
    normalize_whitespace,
    read_splits,
    row_id,
    split_in_memory,
    split_row_id,
    split_schema,
    write_splits,
)
from trainer.errors import DataError

SHARES = {"validation": 0.1, "test": 0.1}
TRAIN_ONLY = {"train": "a", "validation": None, "test": None}


def test_shares_are_met_and_assignments_never_change() -> None:
    shares = {"validation": 0.1, "test": 0.2}
    splits = Counter(assign_split(f"text number {index}", shares) for index in range(20_000))

    assert splits == {"train": 14126, "validation": 1967, "test": 3907}
    assert {assign_split(str(index), {"validation": 0.0}) for index in range(1000)} == {"train"}


@given(st.text(), st.sampled_from([" ", "\n", "\t ", "\u3000", "\r\n"]))
def test_white_space_does_not_change_the_split(text: str, space: str) -> None:
    assert assign_split(space + text.replace(" ", space) + space, SHARES) == assign_split(text, SHARES)
    assert normalize_whitespace(normalize_whitespace(text)) == normalize_whitespace(text)


@given(st.text())
def test_larger_last_share_takes_rows_from_train_only(text: str) -> None:
    before, after = (assign_split(text, {"validation": 0.1, "test": share}) for share in (0.2, 0.5))

    assert after == before or (before, after) == ("train", "test")


@given(st.integers(0, 2**23 - 1), st.integers(1, 2**40 - 1))
def test_row_id_is_an_int64_and_can_be_split(file: int, record: int) -> None:
    assert 0 < row_id(file, record) < 2**63
    assert split_row_id(row_id(file, record)) == (file, record)


def test_layout_has_splits_with_data_of_their_own_or_with_a_share() -> None:
    all_splits = ["train", "validation", "test"]
    for own, held_out in (
        (TRAIN_ONLY, ["validation", "test"]),
        (TRAIN_ONLY | {"validation": "b"}, ["test"]),
        (TRAIN_ONLY | {"validation": "b", "test": "c"}, []),
    ):
        layout = SplitLayout.from_arguments(own, SHARES)
        assert (layout.names, layout.held_out) == (all_splits, held_out)
        without_share = SplitLayout.from_arguments(own, SHARES | {"test": 0}).names
        assert without_share == (all_splits if own["test"] else all_splits[:2])


def test_layout_of_one_split_requires_that_it_neither_takes_nor_gives_rows() -> None:
    layout = SplitLayout.from_arguments(TRAIN_ONLY | {"validation": "b"}, SHARES)

    assert layout.for_split("validation") == SplitLayout({"validation": "b"}, {})
    assert layout.for_split("test") is layout.for_split("train") is None
    all_own = SplitLayout.from_arguments(TRAIN_ONLY | {"validation": "b", "test": "c"}, SHARES)
    assert all_own.for_split("train") == SplitLayout({"train": "a"}, {})


ROWS: dict[str, list[Any]] = {
    "text": ["你好", "", "a"],
    "labels": [["a", "b"], [], ["c"]],
    "value": [[1.0], [2.5, -1.0], [0.0]],
    "score": [0.5, -1.0, 2.0],
    "words": [["a"], ["b", "c"], ["d"]],
    "tags": [["O"], ["B-x", "I-x"], ["O"]],
    "features": [{"a": 1.0, "b": "x"}, {"a": None, "b": None}, {"a": 0.1, "b": "y"}],
    "image": [{"bytes": b"\x89", "path": None}, {"bytes": None, "path": "a.png"}, {"bytes": b"", "path": "b"}],
    "row": [1, 2, 3],
}


def write_columns(path: Path, columns: dict[str, list[Any]]) -> None:
    with SplitWriter(path, split_schema(list(columns)[:-1], {"a": True, "b": False})) as writer:
        for values in zip(*columns.values(), strict=True):
            writer.add(*values)
        assert writer.num_rows == len(columns["row"])


def test_values_of_every_role_survive_the_file(tmp_path: Path) -> None:
    write_columns(tmp_path / "a.arrow", ROWS)
    write_columns(tmp_path / "empty.arrow", {name: [] for name in ROWS})

    assert Dataset.from_file(str(tmp_path / "a.arrow")).to_dict() == ROWS
    assert Dataset.from_file(str(tmp_path / "empty.arrow")).column_names == list(ROWS)


@pytest.mark.parametrize(("role", "cell"), [("text", "x" * 100_000), ("image", {"bytes": b"x" * 100_000})])
def test_long_values_are_written_in_batches(tmp_path: Path, role: str, cell: Any) -> None:
    write_columns(tmp_path / "a.arrow", {role: [cell] * 100, "row": list(range(100))})

    with pa.memory_map(str(tmp_path / "a.arrow")) as file, pa.ipc.open_stream(file) as reader:
        assert len(list(reader)) == 3


@pytest.mark.parametrize(
    ("role", "values", "kept"),
    [
        ("label", ["a", "b", "c", "a"], [0, 1, 3]),
        ("labels", [["a"], [], ["a", "c"], ["b", "a"]], [0, 1, 3]),
        ("tags", [["c"], ["a"], ["b"], ["a", "b"]], [1, 2, 3]),
    ],
)
def test_rows_with_unseen_classes_are_dropped(tmp_path: Path, role: str, values: list[Any], kept: list[int]) -> None:
    path = tmp_path / "a.arrow"
    write_columns(path, {role: values, "row": [10, 11, 12, 13]})

    (dropped,) = set(range(4)) - set(kept)
    assert drop_unseen_classes(path, role, {"a", "b"}) == (1, 10 + dropped)
    expected = {role: [values[position] for position in kept], "row": [10 + position for position in kept]}
    assert Dataset.from_file(str(path)).to_dict() == expected
    assert drop_unseen_classes(path, role, {"a", "b"}) == (0, -1)
    assert [file.name for file in tmp_path.iterdir()] == ["a.arrow"]


def numbered_texts(numbers: range, **changes: Any) -> Iterator[Sample]:
    for number in numbers:
        yield Sample(number, {"text": f"number {number}", "label": str(number % 2), **changes})


def write_and_read(
    folder: Path,
    own: dict[str, Any],
    origins: dict[str, Any],
    roles: tuple[str, ...],
    shares: dict[str, float] = SHARES,
) -> dict[str, Dataset]:
    folder.mkdir(exist_ok=True)
    layout = SplitLayout.from_arguments(own, shares)

    def no_rows_error(origin: str) -> DataError:
        return DataError(f"no rows in {origin}")

    write_splits(folder, layout, split_schema(roles), origins, "rows without a text", no_rows_error)
    return read_splits(folder, layout, lambda split, row: f"{split}:{row}")


def test_key_of_a_sample_decides_its_split(tmp_path: Path) -> None:
    samples = [Sample(row, {"text": f"number {row}"}, f"key {row % 100}") for row in range(300)]

    for split, rows in write_and_read(tmp_path, TRAIN_ONLY, {"train": samples}, ("text",)).items():
        assert {assign_split(f"key {row % 100}", SHARES) for row in rows["row"]} == {split}


def test_splits_in_memory_equal_splits_on_disk(tmp_path: Path) -> None:
    roles = ("text", "label")
    in_memory = split_in_memory(split_schema(roles), numbered_texts(range(300)), SHARES)
    on_disk = write_and_read(tmp_path, TRAIN_ONLY, {"train": numbered_texts(range(300))}, roles)

    assert {split: rows.to_dict() for split, rows in in_memory.items()} == {
        split: rows.to_dict() for split, rows in on_disk.items()
    }
    assert in_memory["train"].features == on_disk["train"].features


@pytest.mark.parametrize(
    ("role", "rare", "usual", "noun"), [("labels", ["a", "x"], ["a"], "label"), ("tags", ["x"], ["a"], "tag")]
)
def test_held_out_rows_with_a_class_without_training_rows_are_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, role: str, rare: Any, usual: Any, noun: str
) -> None:
    test_rows = [number for number in range(300) if assign_split(f"number {number}", SHARES) == "test"]
    samples = [Sample(n, {"text": f"number {n}", role: rare if n in test_rows[:2] else usual}) for n in range(300)]

    splits = write_and_read(tmp_path, TRAIN_ONLY, {"train": samples}, ("text", role))

    assert splits["test"]["row"][:] == test_rows[2:]
    warning = (
        f"data.test: dropped 2 rows with a {noun} that occurs in no training row; the first is test:{test_rows[0]}"
    )
    assert caplog.record_tuples == [("trainer.data.splits", logging.WARNING, warning)]


def test_unseen_class_in_a_file_of_its_own_stays(tmp_path: Path) -> None:
    origins = {"train": numbered_texts(range(300)), "validation": numbered_texts(range(9), label="rare")}

    splits = write_and_read(tmp_path, TRAIN_ONLY | {"validation": "b"}, origins, ("text", "label"))

    assert set(splits["validation"]["label"]) == {"rare"}


def test_held_out_split_with_unseen_classes_only_is_rejected(tmp_path: Path) -> None:
    samples = (Sample(n, {"text": f"number {n}", "label": str(n)}) for n in range(300))

    with pytest.raises(DataError, match=r"^data\.validation: contains only rows with a label that occurs in no"):
        write_and_read(tmp_path, TRAIN_ONLY, {"train": samples}, ("text", "label"))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no rows in train"),
        ([Sample(1, None)], "no rows in train"),
        (
            [Sample(1, {"text": "a"})],
            "data.split: training has 1 row, and none was assigned to validation and test by the shares validation",
        ),
    ],
)
def test_split_without_rows_is_rejected(tmp_path: Path, samples: list[Sample], message: str) -> None:
    with pytest.raises(DataError, match="^" + re.escape(message)):
        write_and_read(tmp_path, TRAIN_ONLY, {"train": samples}, ("text",))


@pytest.mark.parametrize("total", [0.001, 0.999])
@pytest.mark.parametrize("names", [["validation"], ["validation", "test"]])
@pytest.mark.parametrize("count", [3, 4, 5])
def test_shares_in_the_message_give_each_split_a_row(
    count: int, names: list[str], total: float, tmp_path: Path
) -> None:
    own = {"train": "a", "validation": None, "test": None if "test" in names else "b"}

    def write(folder: str, shares: dict[str, float]) -> dict[str, Dataset]:
        origins = {name: numbered_texts(range(count)) for name in own if own[name]}
        return write_and_read(tmp_path / folder, own, origins, ("text",), shares)

    with pytest.raises(DataError, match=f"training has {count} rows, and none was assigned") as caught:
        write("first", dict.fromkeys(("validation", "test"), total / len(names)))
    shares = {name: float(value) for name, value in re.findall(r"data.split.(\w+)=(\S+)", str(caught.value))}
    assert list(shares) == names

    assert all(len(rows) for rows in write("second", {"test": 0.0} | shares).values())


def test_dropped_rows_are_stored_and_reported_on_every_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = [*numbered_texts(range(100)), Sample(7, None), Sample(8, None)]
    write_and_read(tmp_path, TRAIN_ONLY, {"train": samples}, ("text",))
    read_splits(tmp_path, SplitLayout.from_arguments(TRAIN_ONLY, SHARES), lambda split, row: f"{split}:{row}")

    assert json.loads((tmp_path / "dropped.json").read_text()) == [["train", "rows without a text", 2, 7]]
    assert caplog.messages == ["data.train: dropped 2 rows without a text; the first is train:7"] * 2
