"""Folds of the training and validation rows, and groups that stay together in splits and folds."""

import csv
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.support.jobs import working_in, write_data
from trainer.builders.data import build_encoded, build_task
from trainer.cli import main
from trainer.config.command import check_command
from trainer.config.jobs import TrainJob
from trainer.config.stored import config_text, differences, parse_stored_config
from trainer.data.folds import assign_folds, assign_groups


def test_every_fold_has_its_share_of_every_class() -> None:
    keys = [f"text {number}" for number in range(1003)]
    classes = [("a", "b", "b", "c", "c", "c", "c")[number % 7] for number in range(1003)]
    assigned = assign_folds(keys, classes, 5, 0)
    counts = Counter(zip(classes, assigned, strict=True))
    for name in "abc":
        sizes = [counts[name, fold] for fold in range(5)]
        assert max(sizes) - min(sizes) <= 1
    sizes = list(Counter(assigned).values())
    assert max(sizes) - min(sizes) <= 1


def test_folds_depend_on_the_inputs_and_the_seed_only() -> None:
    keys = [f"text {number}" for number in range(100)]
    classes = [str(number % 3) for number in range(100)]
    assigned = assign_folds(keys, classes, 4, 0)
    backwards = assign_folds(keys[::-1], classes[::-1], 4, 0)
    assert backwards[::-1] == assigned
    assert assign_folds(keys, classes, 4, 1) != assigned


def test_equal_inputs_share_a_fold_and_a_class_with_one_input_is_always_trained_on() -> None:
    keys = ["a", "b", "a ", "c", "d", "d"]
    assigned = assign_folds(keys, ["x", "x", "x", "x", "y", "y"], 2, 0)
    assert assigned[0] == assigned[2]
    assert assigned[4:] == [-1, -1]
    assert -1 not in assign_folds(keys, None, 2, 0)


@pytest.mark.parametrize("own_validation", [True, False])
def test_every_row_validates_once_and_is_found_in_its_file(own_validation: bool, tmp_path: Path) -> None:
    files = write_data(tmp_path)
    data = files if own_validation else [text for text in files if "validation" not in text]
    places: list[tuple[str | None, int | None]] = []
    with working_in(tmp_path):
        for fold in range(3):
            single = check_command("train", [*data, "data.folds=3", f"data.fold={fold}"]).single
            assert single is not None
            assert isinstance(single.job, TrainJob)
            encoded = build_encoded(single.job, build_task(single.job), fitted=False)
            sizes = {split: len(rows) for split, rows in encoded.splits.items()}
            validating = list(zip(*encoded.origins("validation", range(sizes["validation"])), strict=True))
            places += validating
            training = zip(*encoded.origins("train", range(sizes["train"])), strict=True)
            assert not {*training} & {*validating}
            assert sizes["test"] == 20
    expected = [(str(tmp_path / "train.csv"), number) for number in range(1, 62)]
    if own_validation:
        expected += [(str(tmp_path / "validation.csv"), number) for number in range(1, 21)]
    assert sorted(places) == sorted(expected)


def test_groups_stay_together_and_folds_are_balanced() -> None:
    draws = random.Random(0)
    groups = [f"patient {draws.randrange(80)}" for _ in range(2000)]
    classes = [draws.choice("aaaaabbbc") for _ in range(2000)]
    assigned = assign_groups(groups, classes, 4, 0)
    assert len(set(zip(groups, assigned, strict=True))) == len(set(groups))
    counts = Counter(zip(classes, assigned, strict=True))
    for name in "abc":
        expected = classes.count(name) / 4
        assert all(abs(counts[name, fold] - expected) <= 0.1 * expected for fold in range(4)), name
    order = draws.sample(range(2000), 2000)
    moved = assign_groups([groups[row] for row in order], [classes[row] for row in order], 4, 0)
    assert moved == [assigned[row] for row in order]
    assert assign_groups(groups, classes, 4, 1) != assigned
    sizes = Counter(assign_groups(groups, None, 4, 0)).values()
    assert max(sizes) - min(sizes) <= 2


def test_a_group_with_all_rows_of_a_class_is_always_trained_on() -> None:
    assigned = assign_groups(["p", "p", "q", "r", "s"], ["x", "y", "y", "y", "y"], 2, 0)
    assert assigned[:2] == [-1, -1]
    assert sorted(set(assigned[2:])) == [0, 1]


def write_groups(folder: Path, name: str, rows: range, patients: int = 40) -> str:
    """Write rows with a patient each, in the order of the rows."""
    words = {"animal": "cat dog", "tool": "saw nail"}
    lines = ["text,label,patient"]
    for row in rows:
        label = "tool" if row % 3 == 0 else "animal"
        lines.append(f"text {row} {words[label]},{label},p{(row * 7919) % patients}")
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / name)


def patients_of(path: str, *keys: str) -> dict[str, set[str]]:
    """Return the patients in each split of a file."""
    single = check_command("train", ["data=files", f"data.train={path}", "data.split.group=patient", *keys]).single
    assert single is not None
    assert isinstance(single.job, TrainJob)
    encoded = build_encoded(single.job, build_task(single.job), fitted=False)
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        split: {
            rows[line - 1]["patient"] for line in encoded.origins(split, range(len(encoded.splits[split])))[1] if line
        }
        for split in encoded.splits
    }


@pytest.mark.parametrize("folds", [[], ["data.folds=3"], ["data.folds=3", "data.fold=2"]])
def test_no_group_is_in_two_splits(folds: list[str], tmp_path: Path) -> None:
    patients = patients_of(write_groups(tmp_path, "all.csv", range(400)), *folds)
    train, validation, test = (patients[split] for split in ("train", "validation", "test"))
    assert len(train) + len(validation) + len(test) == len(train | validation | test) == 40
    assert all((train, validation, test))


def test_new_rows_move_no_group_and_groups_validate_once(tmp_path: Path) -> None:
    few = patients_of(write_groups(tmp_path, "few.csv", range(400)))
    more = patients_of(write_groups(tmp_path, "more.csv", range(100, 900), patients=60))
    for split in ("train", "validation", "test"):
        assert more[split] & {f"p{number}" for number in range(40)} <= few[split] | more[split] - set().union(
            *few.values()
        )
    path = write_groups(tmp_path, "folds.csv", range(400))
    validating = [patients_of(path, "data.folds=4", f"data.fold={fold}")["validation"] for fold in range(4)]
    assert sum(map(len, validating)) == len(set().union(*validating))


@pytest.mark.parametrize(("source", "key"), [("files", "train"), ("hub", "path")])
def test_a_run_of_a_version_without_groups_has_no_other_config(source: str, key: str, tmp_path: Path) -> None:
    path = write_groups(tmp_path, "train.csv", range(10))
    single = check_command("train", [f"data={source}", f"data.{key}={path}"]).single
    assert single is not None
    old = {**single.config, "data": {**single.config["data"], "split": {"validation": 0.1, "test": 0.1}}}
    assert list(differences(parse_stored_config(config_text(old)), single.config)) == []


def test_rows_without_a_group_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gaps.csv"
    others = "".join(f"text {number},{'ab'[number % 2]},p{number}\n" for number in range(40))
    path.write_text(f"text,label,patient\none,a,p1\ntwo,b,\nthree,a,p2\nfour,b, \n{others}", encoding="utf-8")
    assert main(["plan", "data=files", f"data.train={path}", "data.split.group=patient"]) == 6
    lines = capsys.readouterr().err.splitlines()
    first, second = (f"{path}, row {row}, column 'patient': the row has no group." for row in (2, 4))
    assert lines[:2] == [f"{first} Give every row the name of its group, or set data.split.group=null.", second]
    assert main(["plan", "data=files", f"data.train={path}", "data.split.group=null", "trial=false"]) == 0


@pytest.mark.parametrize("patients", [1, 2])
def test_shares_of_few_groups_ask_for_more_groups(
    patients: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_groups(tmp_path, "few.csv", range(40), patients=patients)
    assert main(["plan", "data=files", f"data.train={path}", "data.split.group=patient"]) == 6
    message = capsys.readouterr().err
    assert (
        "by the shares validation 0.1, test 0.1, which hold out whole groups. Add rows of other groups, or " in message
    )


def test_groups_in_two_files_are_a_data_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = [f"data.train={write_groups(tmp_path, 'train.csv', range(90))}", "data.split.test=0"]
    own.append(f"data.validation={write_groups(tmp_path, 'validation.csv', range(90, 120))}")
    job = ["plan", "data=files", *own, "data.strict=true"]
    assert main(job) == 0
    capsys.readouterr()
    assert main([*job, "data.split.group=patient"]) == 6
    first = (
        f"the first is {tmp_path / 'validation.csv'}, row 1; groups that are also in another split: move all rows of "
    )
    message = f"data.strict: validation: 100.0% shared groups (30 rows), {first}a group into one split\n"
    assert capsys.readouterr().err == message


def test_a_group_may_have_another_role_and_is_no_feature(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    rows = [f"{row * 37 % 101},{row % 47},p{row % 50},{'a' if row % 2 else 'b'}" for row in range(300)]
    path.write_text("\n".join(["height,weight,patient,label", *rows]) + "\n", encoding="utf-8")
    base = ["task=tabular_classification", "model=mlp", "data=files", f"data.train={path}"]
    for keys, expected in (
        (["data.split.group=patient"], {"height", "weight"}),
        (["data.split.group=weight", "data.columns.features=[height,weight]"], {"height", "weight"}),
    ):
        single = check_command("train", [*base, *keys]).single
        assert single is not None
        assert isinstance(single.job, TrainJob)
        encoded = build_encoded(single.job, build_task(single.job), fitted=False)
        assert set(encoded.samples("train")[0]["features"]) == expected


def test_too_many_folds_for_the_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_groups(tmp_path, "few.csv", range(400), patients=4)
    keys = [
        f"data.train={path}",
        "data.split={validation: 0.5, test: 0, group: patient}",
        "data.folds=5",
        "data.fold=4",
    ]
    assert main(["plan", "data=files", *keys]) == 6
    message = "data.folds: there are too few groups for as many folds, got 5. Set fewer.\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["data.folds=3", "data.fold=3"], "data.fold: must be less than data.folds, which is 3, got 3."),
        (["data.fold=1"], "data.fold: needs data.folds, got 1. Set data.folds=5, or leave data.fold out."),
        (["data.folds=1"], "data.folds: must be "),
        (["data=files", "data.train=x", "data.split.group=[a]"], "data.split.group: must be "),
        (["data=files", "data.train=x", "data.split.test=a"], "data.split: needs numbers in [0, 1) for validation and"),
        (["data=lines", "data.train=x", "data.split.group=a"], "data.split.group: unknown key"),
    ],
)
def test_wrong_folds(keys: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *keys]) == 2
    assert capsys.readouterr().err.startswith(message)
