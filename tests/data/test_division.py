import itertools
import json
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from tests.support.jobs import assert_resumes, train, working_in
from trainer.cli import main
from trainer.data.cells import TIME, TimeParser
from trainer.data.division import Strata, assign_by_time, divide_rows
from trainer.data.files import Files
from trainer.errors import DataError

SHARES = {"validation": 0.1, "test": 0.2}
START = datetime(2024, 1, 1)


def write_times(path: Path, times: list[float], batch: int = 7) -> None:
    table = pa.table({TIME: pa.array(times, pa.float64()), "row": range(len(times))})
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)


def divide_times(folder: Path, times: list[float], shares: dict[str, float]) -> dict[str, list[float]]:
    """Return the times in each split, in the order of the rows."""
    path = folder / "train.arrow"
    write_times(path, times)
    sizes = divide_rows(path, assign_by_time(path, shares), {})
    splits = {split: Dataset.from_file(str(folder / f"{split}.arrow")) for split in sizes}
    assert {split: len(rows) for split, rows in splits.items()} == sizes
    for rows in splits.values():
        assert [times[row] for row in rows["row"]] == rows[TIME][:]
        assert sorted(rows["row"]) == rows["row"][:]
    assert sum(sizes.values()) == len(times)
    assert not path.with_suffix(".all").exists()
    return {split: rows[TIME][:] for split, rows in splits.items()}


@given(times=st.permutations(range(60)))
def test_shares_of_different_times_are_met_exactly(times: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    splits = divide_times(tmp_path_factory.mktemp("times"), [float(time) for time in times], SHARES)

    expected = {"train": range(42), "validation": range(42, 48), "test": range(48, 60)}
    assert {split: sorted(rows) for split, rows in splits.items()} == {
        split: [float(time) for time in rows] for split, rows in expected.items()
    }


@given(
    times=st.lists(st.integers(0, 6), min_size=1, max_size=40),
    shares=st.sampled_from([{"validation": 0.2}, {"test": 0.4}, SHARES]),
)
def test_equal_times_share_a_split_and_no_training_row_is_newer(
    times: list[int], shares: dict[str, float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("times")
    if len(set(times)) <= len(shares):
        with pytest.raises(
            DataError, match=rf"^data\.split\.time: the {len(times)} rows of training have \d different"
        ):
            divide_times(folder, [float(time) for time in times], shares)
        return
    splits = divide_times(folder, [float(time) for time in times], shares)

    order = ["train", *shares]
    assert list(splits) == order
    for older, newer in itertools.pairwise(order):
        assert max(splits[older]) < min(splits[newer])


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([98, 1, 1], [98, 1, 1]),  # one of the newest times for each split, though the shares ask for more
        ([1, 1, 98], [1, 1, 98]),
        ([80, 3, 4, 13], [80, 3, 17]),  # of 20 rows, 17 are nearer than 24
        ([70, 10, 20], [70, 10, 20]),
        ([60, 20, 9, 11], [60, 20, 20]),
    ],
)
def test_boundary_is_the_nearest_between_two_times(counts: list[int], expected: list[int], tmp_path: Path) -> None:
    times = np.repeat(np.arange(len(counts), dtype=float), counts).tolist()
    splits = divide_times(tmp_path, times, SHARES)

    assert [len(splits[split]) for split in ("train", *SHARES)] == expected


def test_batches_without_a_row_of_training_leave_its_classes_alone(tmp_path: Path) -> None:
    path = tmp_path / "train.arrow"
    table = pa.table({"label": ["a", "b", "c"], TIME: [1.0, 2.0, 3.0], "row": [1, 2, 3]})
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    classes = {"label": {"c"}}

    assert divide_rows(path, assign_by_time(path, SHARES), classes) == {"train": 1, "validation": 1, "test": 1}
    assert classes == {"label": {"a"}}


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["2024-01-31", date(2024, 1, 31)], "dates without a zone", [datetime(2024, 1, 31)] * 2),
        ([" 2024-01-31 12:00 ", START], "dates without a zone", [datetime(2024, 1, 31, 12), START]),
        (
            ["2024-01-31T12:00:00.5Z", "2024-01-31T14:00:00.5+02:00"],
            "dates with a zone",
            [datetime(2024, 1, 31, 12, 0, 0, 500_000, UTC)] * 2,
        ),
        ([1_700_000_000, "17e8", 20240131, "-1.5"], "numbers", [1.7e9, 1.7e9, 20240131.0, -1.5]),
    ],
)
def test_times_are_read(cells: list[object], kind: str, values: list[object]) -> None:
    parse = TimeParser()

    assert [parse(cell) for cell in cells] == values
    assert parse.kind == kind


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (17, "the times before are dates without a zone, got 17"),
        ("2024-01-31T12:00Z", "the times before are dates without a zone, got '2024-01-31T12:00Z'"),
        ("31.01.2024", "expected a date in ISO 8601 or a number, got '31.01.2024'"),
        ("2024-02-30", "expected a date in ISO 8601 or a number, got '2024-02-30'"),
        ("0001-01-01T00:00+05:00", "expected a date in ISO 8601 or a number, got '0001-01-01T00:00+05:00'"),
        (float("inf"), "expected a finite number, got inf"),
        (True, "expected a date or a number, got bool"),
        ([1], "expected a date or a number, got list"),
        *((empty, "the row has no time") for empty in (None, "", " ", float("nan"), "nan")),
    ],
)
def test_wrong_times_are_rejected(cell: object, message: str) -> None:
    parse = TimeParser()
    parse("2024-01-31")

    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse(cell)


def write_rows(path: Path, rows: range, **cells: str) -> str:
    """Write a row an hour, the last first; `cells` replaces the time of some rows by number."""
    lines = ["text,label,created,patient"]
    for row in reversed(rows):
        time = cells.get(f"row{row}", (START + timedelta(hours=row)).isoformat())
        lines.append(f"text {row} {'dog' if row % 2 else 'saw'},{'animal' if row % 2 else 'tool'},{time},p{row % 9}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def plan_splits(capsys: pytest.CaptureFixture[str], *keys: str) -> dict[str, tuple[int, str, str]]:
    capsys.readouterr()
    assert main(["plan", *keys, "json=true", "trial=false"]) == 0
    splits = json.loads(capsys.readouterr().out)["data"]["splits"]
    return {name: (split["rows"], split["from"], split["to"]) for name, split in splits.items()}


def test_plan_says_the_times_of_each_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "all.csv", range(100))
    expected = {
        "train": (80, "2024-01-01", "2024-01-04T07:00:00"),
        "validation": (10, "2024-01-04T08:00:00", "2024-01-04T17:00:00"),
        "test": (10, "2024-01-04T18:00:00", "2024-01-05T03:00:00"),
    }
    assert plan_splits(capsys, "data=files", f"data.train={path}", "data.split.time=created") == expected

    texts = [f"text {row}" for row in range(100)]
    times = [START + timedelta(hours=row) for row in range(100)]
    labels = ["animal" if row % 2 else "tool" for row in range(100)]
    utc = pa.table({"text": texts, "label": labels, "created": pa.array(times, pa.timestamp("ns", "UTC"))})
    parquet.write_table(utc, tmp_path / "all.parquet")
    keys = ["data=files", f"data.train={tmp_path / 'all.parquet'}", "data.split.time=created"]
    zoned = {
        "train": (80, "2024-01-01T00:00:00Z", "2024-01-04T07:00:00Z"),
        "validation": (10, "2024-01-04T08:00:00Z", "2024-01-04T17:00:00Z"),
        "test": (10, "2024-01-04T18:00:00Z", "2024-01-05T03:00:00Z"),
    }
    assert plan_splits(capsys, *keys) == zoned

    data = DatasetDict({"train": Dataset.from_dict({"text": texts, "label": labels, "created": list(range(100))})})
    data.save_to_disk(str(tmp_path / "hub"))
    numbers = {"train": (80, "0", "79"), "validation": (10, "80", "89"), "test": (10, "90", "99")}
    hub = ["data=hub", f"data.path={tmp_path / 'hub'}", "data.splits={train: train, validation: null, test: null}"]
    assert plan_splits(capsys, *hub, "data.split.time=created") == numbers


@pytest.mark.slow
def test_a_run_on_splits_by_time_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    keys = [f"data.train={write_rows(tmp_path / 'all.csv', range(60))}", "data.split.time=created"]
    with working_in(tmp_path):
        assert train(tmp_path / "run", "data=files", *keys, "train.duration=6", "checkpoint.every=1") == 0
        assert_resumes(tmp_path / "run", 5)


def test_times_that_cannot_be_compared_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "all.csv", range(60), row57="17", row5="", row3="yesterday")
    assert main(["plan", "data=files", f"data.train={path}", "data.split.time=created"]) == 6

    remedy = "Give every row a time, all written alike, as 2024-01-31, 2024-01-31T12:00:00, 2024-01-31T12:00:00Z or "
    remedy += "a number, or set data.split.time=null."
    assert capsys.readouterr().err.splitlines() == [
        f"{path}, row 3, column 'created': the times before are dates without a zone, got '17'. {remedy}",
        f"{path}, row 55, column 'created': the row has no time.",
        f"{path}, row 57, column 'created': expected a date in ISO 8601 or a number, got 'yesterday'.",
    ]


def test_files_that_overlap_in_time_are_a_data_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = [
        f"data.train={write_rows(tmp_path / 'train.csv', range(60))}",
        f"data.validation={write_rows(tmp_path / 'validation.csv', range(56, 76))}",
        "data.split.test=0",
    ]
    job = ["plan", "data=files", *own, "data.split={time: created, group: patient}", "data.strict=true"]
    assert main([*job, "data.split.group=null"]) == 6
    message = f"data.strict: validation: 20.0% too old (4 rows), the first is {tmp_path / 'validation.csv'}, row 17; "
    assert message in capsys.readouterr().err
    later = write_rows(tmp_path / "validation.csv", range(60, 80))
    assert main([*job[:3], f"data.validation={later}", *job[4:], "data.split.group=null"]) == 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["data.split.time=0.5"], "data.split.time: must be the name of a column, got 0.5."),
        (
            ["data.split={time: created, group: patient}"],
            "data.split.time: a split by time cannot keep the rows of a group together, got 'created'. Set ",
        ),
        (
            ["data.split.time=created", "data.folds=3"],
            "data.folds: folds would mix rows of all times (data.split.time), got 3. Set data.folds=null or ",
        ),
    ],
)
@pytest.mark.parametrize("source", ["files", "hub"])
def test_wrong_splits_by_time(source: str, keys: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["data.train=x"] if source == "files" else ["data.path=x/y", "data.splits.test=null"]
    assert main(["train", f"data={source}", *own, *keys]) == 2
    assert capsys.readouterr().err.startswith(message)


def test_rows_of_one_time_cannot_be_divided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "all.csv", range(40), **{f"row{row}": "2024-01-31" for row in range(40)})
    assert main(["plan", "data=files", f"data.train={path}", "data.split.time=created"]) == 6
    assert capsys.readouterr().err == (
        "data.split.time: the 40 rows of training have 1 different time, and the splits train, validation and test need"
        " 3. Add rows of other times, name a finer column, or name files in data.validation and data.test.\n"
    )


def divide_classes(folder: Path, rows: list[tuple[str, float]], shares: dict[str, float]) -> dict[str, list[int]]:
    """Return the rows in each split, for rows of a class and a point each."""
    strata, path = Strata(), folder / "train.arrow"
    for name, point in rows:
        strata.add(name, point)
    table = pa.table({"label": [name for name, _ in rows], "row": range(len(rows))})
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    classes: dict[str, set[str]] = {"label": set()}
    sizes = divide_rows(path, strata.assign(shares), classes)
    splits = {split: Dataset.from_file(str(folder / f"{split}.arrow"))["row"][:] for split in sizes}
    assert classes["label"] == {rows[row][0] for row in splits["train"]}
    assert sorted(row for each in splits.values() for row in each) == list(range(len(rows)))
    return splits


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    seed=st.integers(0, 9),
    shares=st.sampled_from([{"validation": 0.1234, "test": 0.2071}, {"test": 0.3019}]),
)
def test_each_class_gives_its_shares(
    sizes: list[int], seed: int, shares: dict[str, float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    random = np.random.default_rng(seed)
    rows = [(f"c{number}", random.random()) for number, size in enumerate(sizes) for _ in range(size)]
    random.shuffle(rows)
    splits = divide_classes(tmp_path_factory.mktemp("strata"), rows, shares)

    for number, size in enumerate(sizes):
        own = {split: sorted(rows[row] for row in splits[split] if rows[row][0] == f"c{number}") for split in splits}
        middles, start = [(row + 0.5) / size for row in range(size)], 0.0
        for split, share in shares.items():
            assert len(own[split]) == sum(start < middle < start + share for middle in middles)
            assert abs(len(own[split]) - share * size) < 1
            start += share
        assert own["train"]
        # The first ones by their points are held out.
        in_order = [row for split in (*shares, "train") for row in own[split]]
        assert in_order == sorted(in_order)


@given(rows=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([0.1, 0.2, 0.5, 0.9])), min_size=1, max_size=30))
def test_rows_with_equal_inputs_share_a_split_also_with_several_classes(
    rows: list[tuple[str, float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    splits = divide_classes(tmp_path_factory.mktemp("strata"), rows, SHARES)

    points = [{rows[row][1] for row in each} for each in splits.values()]
    assert sum(map(len, points)) == len(set().union(*points))


@pytest.mark.parametrize("split", [{"stratify": "label"}, {"time": "created"}])
@pytest.mark.parametrize("named", ["validation", "validation/clean", "test"])
def test_shares_of_classes_and_times_next_to_a_file_of_another_split(
    split: dict[str, str], named: str, tmp_path: Path
) -> None:
    for name, rows in {"all": range(40), "own": range(40, 47)}.items():
        lines = [f"text {row},{'ab'[row % 2]},{row}" for row in rows]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label,created", *lines]) + "\n", encoding="utf-8")
    own = str(tmp_path / "own.csv")
    files = {named.partition("/")[0]: {"clean": own} if "/" in named else own}
    shares = {"validation": 0.1, "test": 0.1, "group": None, "time": None, "stratify": None} | split
    arguments = {"train": str(tmp_path / "all.csv"), "cache_dir": str(tmp_path), "split": shares} | files
    splits = Files(**(files_arguments() | arguments)).load(["text", "label"])

    held_out = "validation" if named == "test" else "test"
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 36, held_out: 4, named: 7}
    assert splits[named]["text"][:] == [f"text {row}" for row in range(40, 47)]


def test_stratified_shares_of_a_rare_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "all.csv"
    labels = ["rare" if row % 20 == 0 else "usual" for row in range(400)]
    lines = [f"text {row},{label},p{row}" for row, label in enumerate(labels)]
    path.write_text("\n".join(["text,label,patient", *lines]) + "\n", encoding="utf-8")
    counts = []
    for name in ("all.csv", "shuffled.csv"):
        np.random.default_rng(0).shuffle(lines)
        (tmp_path / "shuffled.csv").write_text("\n".join(["text,label,patient", *lines]) + "\n", encoding="utf-8")
        arguments = {"train": str(tmp_path / name), "cache_dir": str(tmp_path)}
        splits = Files(**(files_arguments() | arguments)).load(["text", "label"])
        counts.append({split: sorted(zip(rows["label"], rows["text"], strict=True)) for split, rows in splits.items()})
    assert counts[0] == counts[1]  # whatever the order of the rows
    assert {split: sum(label == "rare" for label, _ in rows) for split, rows in counts[0].items()} == {
        "train": 16,
        "validation": 2,
        "test": 2,
    }
    assert [len(rows) for rows in counts[0].values()] == [320, 40, 40]

    base = ["plan", "data=files", f"data.train={path}"]
    assert main([*base, "data.split.stratify=patient"]) == 6
    message = (
        "data.split.stratify: training has 400 rows, and none was assigned to validation and test: the classes are"
    )
    assert capsys.readouterr().err.startswith(message)
    assert main([*base, "data.split.stratify=label", "data.split.group=patient"]) == 2
    assert capsys.readouterr().err.startswith(
        "data.split.stratify: shares of each class cannot be combined with groups"
    )
    assert main([*base, "data.split.stratify=0.5"]) == 2
    assert capsys.readouterr().err == "data.split.stratify: must be the name of a column, got 0.5.\n"


def files_arguments() -> dict[str, Any]:
    """Return the arguments of `Files` as conf/data/files.yaml has them, with shares of each class."""
    text = (Path(__file__).parents[2] / "conf" / "data" / "files.yaml").read_text(encoding="utf-8")
    config: dict[str, Any] = yaml.safe_load(text)
    return {key: value for key, value in config.items() if key != "_target_"} | {
        "split": {"validation": 0.1, "test": 0.1, "stratify": "label"}
    }
