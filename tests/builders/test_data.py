"""Data problems: warnings, or errors with `data.strict=true`; the options of the loaders."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.jobs import rows, train, working_in
from tests.test_conf import job_of
from trainer.builders.data import loader_options
from trainer.cli import main


def write_wrong(folder: Path) -> list[str]:
    """Write a training file with every tenth text under two labels, and a validation file that repeats some of it."""
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


def test_data_problems_are_warnings(tmp_path: Path) -> None:
    with working_in(tmp_path):
        assert train(tmp_path / "run", *write_wrong(tmp_path)) == 0
    log = (tmp_path / "run/trainer.log").read_text(encoding="utf-8")

    assert f"train: 9.1% duplicates (8 rows), the first is {tmp_path / 'train.csv'}, row " in log
    assert f"train: 9.1% conflicting (8 rows), the first is {tmp_path / 'train.csv'}, row " in log
    leaked = f"validation: 33.3% leaked (10 rows), the first is {tmp_path / 'validation.csv'}, row 1; inputs that are "
    assert f"{leaked}also in another split" in log


def test_strict_makes_data_problems_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with working_in(tmp_path):
        assert train(tmp_path / "run", *write_wrong(tmp_path), "data.strict=true") == 6
    lines = capsys.readouterr().err.splitlines()

    assert [line.split(" (")[0] for line in lines] == [
        "data.strict: train: 9.1% duplicates",
        "data.strict: train: 9.1% conflicting",
        "data.strict: validation: 33.3% leaked",
    ]
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


def test_dropped_rows_are_reported_each_time_and_are_errors_if_strict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [*(f"{text},{label}" for text, label in rows(80)), ",fruit", "  ,tool"]
    (tmp_path / "my.csv").write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    job = ["data=files", f"data.train={tmp_path}/my.csv", f"data.cache_dir={tmp_path}/cache", "train.duration=1"]
    message = f"data.train: dropped 2 rows without a text or a label; the first is {tmp_path}/my.csv, row 81"
    with working_in(tmp_path):
        for name in ("read", "cached"):
            assert train(tmp_path / name, *job) == 0
            assert (tmp_path / name / "trainer.log").read_text(encoding="utf-8").count(message) == 1
        capsys.readouterr()
        assert train(tmp_path / "strict", *job, "data.strict=true") == 6
    assert f"data.strict: {message}" in capsys.readouterr().err


def test_strict_is_true_or_false(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "data.strict=maybe"]) == 2
    assert capsys.readouterr().err == "data.strict: must be true or false, got 'maybe'.\n"


def test_pinned_memory_follows_the_device_unless_it_is_set() -> None:
    def pinned(device: str, *overrides: str) -> Any:
        return loader_options(job_of(*overrides), torch.device(device), "packed").pin_memory

    assert (pinned("cpu"), pinned("cuda"), pinned("cuda", "loader.pin_memory=false")) == (False, True, False)
