"""`trainer init`: what it proposes for each kind of data, and that the commands it prints work as they are printed."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.jobs import TINY, events, rows, working_in, write_csv
from trainer.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with working_in(tmp_path):
        yield tmp_path


def write_table(path: str, header: list[str], lines: list[list[object]], separator: str = ",") -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator).writerows([header, *lines])


def printed_commands(output: str) -> list[list[str]]:
    """Return the commands after `next:`, without the program's name."""
    return [line.split()[1:] for line in output.partition("next:\n")[2].splitlines()]


def test_texts_with_labels_train_with_the_printed_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table("my.csv", ["id", "content", "kind"], [[n, *row] for n, row in enumerate(rows(120))])
    assert main(["init", "my.csv"]) == 0
    output = capsys.readouterr().out
    plan, train = printed_commands(output)
    assert (plan, train) == (["plan", "experiment=my"], ["train", "experiment=my"])
    assert "task=text_classification" in output
    assert main([*plan, "trial=false"]) == 0
    assert main([*train, *TINY, "run.dir=run", "train.duration=2"]) == 0
    assert events(folder / "run", "end")[-1]["step"] == 2


def test_an_experiment_is_replaced_only_with_force(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(folder / "my.csv")
    file = folder / "conf" / "experiment" / "my.yaml"
    assert main(["init", "my.csv"]) == 0
    written = file.read_text(encoding="utf-8")
    file.write_text("train: {duration: 1ep}\n", encoding="utf-8")
    assert main(["init", "my.csv"]) == 2
    assert "Set force=true to replace it, or choose another name: name=my_2." in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == "train: {duration: 1ep}\n"
    assert main(["init", "my.csv", "name=my_2"]) == 0
    assert main(["init", "my.csv", "force=true"]) == 0
    assert file.read_text(encoding="utf-8") == written
    assert yaml.safe_load(written)["data"]["train"] == "my.csv"
