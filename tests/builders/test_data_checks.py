"""Data that is wrong: told, and with `data.strict=true` refused."""

from pathlib import Path

import pytest

from tests.support.jobs import rows, train, working_in
from trainer.cli import main


def write_wrong(folder: Path) -> list[str]:
    """A training file with every tenth text twice under two labels, and a validation file that repeats some of it."""
    made = rows(80)
    twice = [(text, "other") for text, _ in made[::10]]
    for name, lines in (
        ("train", made + twice),
        ("validation", made[:10] + rows(20, seed=1)),
        ("test", rows(20, seed=2)),
    ):
        content = "\n".join(["text,label", *(f"{text},{label}" for text, label in lines)])
        (folder / f"{name}.csv").write_text(content, encoding="utf-8")
    files = [f"data.{name}={folder}/{name}.csv" for name in ("train", "validation", "test")]
    return ["data=files", *files, f"data.cache_dir={folder}/cache", "train.duration=2"]


def test_wrong_data_is_told_and_trained_on(tmp_path: Path) -> None:
    with working_in(tmp_path):
        assert train(tmp_path / "run", *write_wrong(tmp_path)) == 0
    log = (tmp_path / "run/trainer.log").read_text(encoding="utf-8")

    assert "train: 9.1 % duplicates, the first at position " in log
    assert "train: 9.1 % conflicting, the first at position " in log
    assert "validation: 33.3 % leaked, the first at position 0; inputs that are also in another split" in log


def test_strict_refuses_it_with_all_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with working_in(tmp_path):
        assert train(tmp_path / "run", *write_wrong(tmp_path), "data.strict=true") == 6
    told = capsys.readouterr().err.splitlines()

    assert [line.split(",")[0] for line in told] == [
        "data.strict: train: 9.1 % duplicates",
        "data.strict: train: 9.1 % conflicting",
        "data.strict: validation: 33.3 % leaked",
    ]
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


def test_rows_that_are_left_out_are_told_of_each_time_and_strictly_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [*(f"{text},{label}" for text, label in rows(80)), ",fruit", "  ,tool"]
    (tmp_path / "my.csv").write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    job = ["data=files", f"data.train={tmp_path}/my.csv", f"data.cache_dir={tmp_path}/cache", "train.duration=1"]
    told = f"data.train: dropped 2 rows without a text or a label; the first is {tmp_path}/my.csv, row 81"
    with working_in(tmp_path):
        for name in ("read", "cached"):
            assert train(tmp_path / name, *job) == 0
            assert (tmp_path / name / "trainer.log").read_text(encoding="utf-8").count(told) == 1
        capsys.readouterr()
        assert train(tmp_path / "strict", *job, "data.strict=true") == 6
    assert f"data.strict: {told}" in capsys.readouterr().err


def test_strict_is_true_or_false(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "data.strict=maybe"]) == 2
    assert capsys.readouterr().err == "data.strict: must be true or false, got 'maybe'.\n"
