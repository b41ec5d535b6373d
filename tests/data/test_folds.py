"""Folds of the training and validation rows."""

from collections import Counter
from pathlib import Path

import pytest

from tests.support.jobs import working_in, write_data
from trainer.builders.data import build_encoded, build_task
from trainer.cli import main
from trainer.config.command import check_command
from trainer.config.jobs import TrainJob
from trainer.data.folds import assign_folds


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


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["data.folds=3", "data.fold=3"], "data.fold: must be less than data.folds, which is 3, got 3."),
        (["data.fold=1"], "data.fold: needs data.folds, got 1. Set data.folds=5, or leave data.fold out."),
        (["data.folds=1"], "data.folds: must be "),
    ],
)
def test_wrong_folds(keys: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *keys]) == 2
    assert capsys.readouterr().err.startswith(message)
