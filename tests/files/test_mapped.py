import os
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import DataError
from trainer.files.mapped import RowReader, as_array, open_mapped_file, read_chunks, release_pages

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps").exists(), reason="only Linux says which pages are in memory"
)

ROWS = 20_000
VALUES: dict[str, Callable[[int], Any]] = {
    "whole": lambda n: n,
    "real": lambda n: n / 7,
    "flag": lambda n: n % 3 == 0,
    "missing": lambda n: n if n % 2 else None,
    "time": lambda n: datetime(2026, 1, 1) + timedelta(minutes=n),
    "text": lambda n: f"t{n}\0",
    "numbers": lambda n: np.arange(n, n + n % 300),
    "words": lambda n: [f"w{n}"] * (n % 3),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of more than 16 MiB with columns of every type, in batches of 1000 rows."""
    path = tmp_path_factory.mktemp("rows") / "rows.arrow"
    table = pa.table({name: [value(n) for n in range(ROWS)] for name, value in VALUES.items()})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    assert path.stat().st_size > 2**24
    return path


def resident_bytes(path: Path) -> int:
    """Return how much of a mapped file is in the memory of this process."""
    counted, is_file = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split()[0]:
            is_file = line.endswith(str(path))
        elif is_file and line.startswith("Rss:"):
            counted += 1024 * int(line.split()[1])
    return counted


def as_lists(values: Any) -> list[Any]:
    return [getattr(each, "tolist", lambda each=each: each)() for each in values]


@pytest.mark.parametrize("part", ["all rows", "later rows"])
def test_rows_of_a_large_file_equal_rows_in_memory(path: Path, part: str) -> None:
    start = 1500 if part == "later rows" else 0
    rows = Dataset.from_file(str(path))
    rows = rows.select(range(start, ROWS))
    ids = np.random.default_rng(0).integers(0, ROWS - start, 200).tolist()

    columns = RowReader(rows).read(ids)

    for name in ("whole", "real", "flag", "time", "text", "numbers", "words"):
        assert as_lists(columns[name]) == as_lists([VALUES[name](start + n) for n in ids]), name
    missing = [None if np.isnan(each) else each for each in as_lists(columns["missing"])]
    assert missing == [VALUES["missing"](start + n) for n in ids]


def test_reading_single_rows_does_not_bring_their_file_into_memory(path: Path) -> None:
    rows = Dataset.from_file(str(path))
    reader = RowReader(rows)
    reader.read([0])["numbers"]
    release_pages(rows)
    assert resident_bytes(path) < path.stat().st_size / 8

    ids = np.random.default_rng(0).integers(0, ROWS, 300).tolist()
    columns = reader.read(ids)
    assert [each.sum() for each in columns["numbers"]] == [sum(range(n, n + n % 300)) for n in ids]
    assert columns["whole"].tolist() == ids

    assert resident_bytes(path) < path.stat().st_size / 4


def test_reading_chunks_keeps_none_of_them_in_memory(path: Path) -> None:
    rows = Dataset.from_file(str(path))
    total, largest = 0, 0
    for chunk in read_chunks(rows, "whole", "numbers", size=5000):
        total += sum(chunk["whole"].to_pylist())
        largest = max(largest, resident_bytes(path))

    assert total == sum(range(ROWS))
    assert 0 < largest < path.stat().st_size / 2
    assert resident_bytes(path) < path.stat().st_size / 8


def test_the_rows_of_a_replaced_file_are_still_read(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "rows.arrow"
    copy.write_bytes(path.read_bytes())
    rows = Dataset.from_file(str(copy))
    copy.unlink()
    copy.write_bytes(bytes(path.stat().st_size))

    assert open_mapped_file(rows.data) is None
    assert RowReader(rows).read([7, 15_000])["whole"].tolist() == [7, 15_000]


def test_a_file_that_is_cut_off_during_the_run_is_reported(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "rows.arrow"
    copy.write_bytes(path.read_bytes())
    reader = RowReader(Dataset.from_file(str(copy)))
    os.truncate(copy, path.stat().st_size // 2)

    assert reader.read([7])["whole"].tolist() == [7]
    with pytest.raises(DataError, match=r"rows\.arrow: has been cut off during the run"):
        reader.read([ROWS - 1])["whole"]


def test_rows_in_memory_are_never_released() -> None:
    rows = Dataset.from_dict({"n": np.arange(2**22)})

    assert open_mapped_file(rows.data) is None
    release_pages(rows)
    assert sum(chunk["n"].to_numpy().sum() for chunk in read_chunks(rows, "n", size=2**20)) == sum(range(2**22))


@pytest.mark.parametrize("name", ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_whole_numbers_become_arrays(name: str) -> None:
    check_array(name, [1, 0, 1, 1, 0, 1, 0, 0, 1, 1])


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_numbers_become_arrays(name: str) -> None:
    check_array(name, [0.5, -2.25, 1e4])


def check_array(name: str, values: list[Any]) -> None:
    array = as_array(pa.array(np.array(values, dtype=name))[1:])

    assert array.dtype == np.dtype(name)
    assert array.tolist() == np.array(values, dtype=name)[1:].tolist()


@pytest.mark.parametrize("name", ["date32", "date64"])
def test_dates_become_arrays(name: str) -> None:
    days = [date(2026, 1, 2), date(1969, 12, 31)]

    assert as_array(pa.array(days, getattr(pa, name)())).astype("datetime64[D]").tolist() == days


@given(st.lists(st.integers(0, 99), min_size=1, max_size=40))
def test_rows_of_every_type_are_read_from_any_chunk(ids: list[int]) -> None:
    values: dict[str, list[Any]] = {
        "whole": list(range(100)),
        "real": [n / 7 for n in range(100)],
        "flag": [n % 3 == 0 for n in range(100)],
        "text": [f"t{n}\0" for n in range(100)],
        "bytes": [bytes([n, 0]) for n in range(100)],
        "numbers": [list(range(n % 5)) for n in range(100)],
        "words": [[f"w{n}"] * (n % 3) for n in range(100)],
    }
    parts = [{name: column[start : start + 7] for name, column in values.items()} for start in range(0, 100, 7)]
    rows = concatenate_datasets([Dataset.from_dict(part) for part in parts])

    columns = RowReader(rows).read(ids)

    read = {name: [getattr(each, "tolist", lambda each=each: each)() for each in columns[name]] for name in columns}
    assert read == {name: [column[position] for position in ids] for name, column in values.items()}
    assert columns["real"].dtype == np.float64
