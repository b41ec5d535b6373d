"""`trainer eval` on rows other than the run's own: what it reads, and where the score is stored."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import checkpoint_files, rows, train, working_in, write_csv, write_data
from trainer.cli import main

OTHER = "test-new-*.json"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("eval")
    with working_in(made):
        assert train(made / "run", *write_data(made), "train.duration=4") == 0
        yield made


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """Return a working directory with a copy of the run and `new.csv`; the training data stays in its place."""
    shutil.copytree(trained / "run", tmp_path / "run")
    with working_in(tmp_path):
        write_csv(tmp_path / "new.csv", 30, seed=9)
        yield tmp_path


def score(run: Path, pattern: str = "test.json") -> dict[str, Any]:
    (file,) = (run / "eval").glob(pattern)
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return document


def test_score_on_other_data_is_stored_next_to_the_runs_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = score(folder / "run")
    assert main(["eval", "run=run", "device=cpu", "data.test=new.csv"]) == 0
    other = score(folder / "run", OTHER)

    assert score(folder / "run") == own
    assert other["data"] == "data.test=new.csv"
    assert other["digest"] != own["digest"]
    assert (other["split"], other["accuracy"] != own["accuracy"] or other["loss"] != own["loss"]) == ("test", True)
    assert f"test-new-{other['digest'][:8]}" in capsys.readouterr().out

    assert main(["report", "run=run"]) == 0
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "data.test=new.csv" in page
    shutil.copytree(folder / "run", folder / "without")
    next((folder / "without" / "eval").glob(OTHER)).unlink()
    capsys.readouterr()
    assert main(["diff", "left=run", "right=without", "json=true"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert {name.split(".")[0] for name in results} == {f"test-new-{other['digest'][:8]}"}
    assert {"left": "data.test=new.csv"} in results.values()


def test_a_file_that_is_no_evaluation_is_not_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = folder / "run" / "eval" / "validation.json"
    own.write_text('{"mine": 1}', encoding="utf-8")
    arguments = ["eval", "run=run", "split=validation", "device=cpu"]

    assert main(arguments) == 2
    assert (
        "eval: was not written by trainer, or has been changed since, got 'run/eval/validation.json'. Set force=true"
        in capsys.readouterr().err
    )
    assert own.read_text(encoding="utf-8") == '{"mine": 1}'
    for force in ("true", "false"):  # the second time, it is an evaluation
        assert main([*arguments, f"force={force}"]) == 0
    written = own.read_text(encoding="utf-8")
    for changed in (written.replace('"step": ', '"step": 1'), written + "\n", written.replace("{", '{"note": "x",')):
        own.write_text(changed, encoding="utf-8")
        assert main(arguments) == 2
        assert own.read_text(encoding="utf-8") == changed
    document = json.loads(written)
    del document["checksum"]  # of an earlier version
    own.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    assert main(arguments) == 0


def test_training_keeps_what_the_user_has_changed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = folder / "run" / "eval" / "test.json", folder / "run" / "report.html"
    for file in files:
        file.write_bytes(file.read_bytes().replace(b"0", b"1", 1))
    changed = [file.read_bytes() for file in files]
    for _ in range(2):  # the second time, nothing is kept
        assert main(["train", "resume=run"]) == 0
    assert [file.with_name(f"{file.name}.kept-1").read_bytes() for file in files] == changed
    assert not list((folder / "run").rglob("*.kept-2"))
    assert f"{files[0].relative_to(folder)}: was not written by trainer, or has been changed since; it" in caplog.text
    assert main(["report", "run=run"]) == 0


def test_same_rows_in_another_file_count_as_the_runs_own(trained: Path, folder: Path) -> None:
    own = score(folder / "run")
    shutil.copyfile(trained / "test.csv", folder / "copy.csv")

    assert main(["eval", "run=run", "device=cpu", "data.test=copy.csv", "data.strict=true"]) == 0
    assert score(folder / "run", "test*.json") == own


@pytest.mark.parametrize("overrides", [["loader.limit=5"], []])
def test_fewer_or_changed_rows_count_as_other_data(
    overrides: list[str], trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, kept = score(folder / "run"), (trained / "test.csv").read_bytes()
    if not overrides:
        write_csv(trained / "test.csv", 20, seed=77)
    try:
        assert main(["eval", "run=run", "device=cpu", *overrides]) == 0
    finally:
        (trained / "test.csv").write_bytes(kept)

    other = score(folder / "run", "test-*.json")
    assert score(folder / "run") == own
    assert other["data"] == (overrides[0] if overrides else "data.test=changed since the run's own score")


def test_rows_of_the_training_data_are_reported(
    folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    (text, label), *_ = rows(61, seed=0)
    with (folder / "new.csv").open("a", encoding="utf-8") as file:
        file.write(f"{text},{label}\n")

    assert main(["eval", "run=run", "device=cpu", "data.test=new.csv"]) == 0
    assert [line for line in caplog.messages if "leaked" in line] == [
        "test: 3.2% leaked (1 row), the first at position 30; inputs that are also in another split: "
        "remove them from one of the two"
    ]
    assert main(["eval", "run=run", "device=cpu", "data.test=new.csv", "data.strict=true"]) == 6
    assert "data.strict: test: 3.2% leaked" in capsys.readouterr().err


def test_eval_reads_only_the_evaluated_split(
    trained: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TRAINER_CACHE", str(folder / "cold"))
    text = (folder / "new.csv").read_text(encoding="utf-8")
    (folder / "named.csv").write_text(text.replace("text,label", "body,cat", 1), encoding="utf-8")
    (trained / "train.csv").rename(trained / "gone.csv")
    try:
        assert main(["eval", "run=run", "device=cpu"]) == 0
        assert main(["eval", "run=run", "device=cpu", "data.test=new.csv"]) == 0
        named = ["data.test=named.csv", "data.text=body", "data.label=cat"]
        assert main(["eval", "run=run", "device=cpu", *named]) == 0
    finally:
        (trained / "gone.csv").rename(trained / "train.csv")

    same = [score(folder / "run", name)["accuracy"] for name in (OTHER, "test-named-*.json")]
    assert same[0] == same[1]
    assert any(
        "test: cannot be compared with the training data: data.train: no such file" in m for m in caplog.messages
    )


def test_features_are_read_as_in_training(tmp_path: Path) -> None:
    lines = [f"{number},{'a' if number % 3 else number % 5},{'x' if number % 2 else 'y'}" for number in range(60)]
    options = ["task=tabular_classification", "data=files", "model=linear", "logger.console=none", "export.formats=[]"]
    options += ["data.label=kind", "data.train=train.csv", "data.validation=other.csv", "data.test=other.csv"]
    with working_in(tmp_path):
        (tmp_path / "train.csv").write_text("\n".join(["size,mark,kind", *lines]), encoding="utf-8")
        # Without the training rows, the second column would be taken for numbers.
        (tmp_path / "other.csv").write_text("size,mark,kind\n3,2,x\n8,3,y\n", encoding="utf-8")
        shutil.copyfile(tmp_path / "other.csv", tmp_path / "test.csv")
        options[-1] = "data.test=test.csv"
        assert main(["train", "run.dir=run", "device=cpu", "train.duration=4", *options]) == 0
        own = score(tmp_path / "run")
        (tmp_path / "train.csv").unlink()

        assert main(["eval", "run=run", "device=cpu"]) == 0
        assert score(tmp_path / "run", "test*.json") == own


def test_predictions_can_be_left_out_and_change_nothing_else(trained: Path, tmp_path: Path) -> None:
    with working_in(trained):
        data = [f"data.{split}={trained}/{split}.csv" for split in ("train", "validation", "test")]
        options = ["data=files", *data, f"data.cache_dir={trained}/cache", "train.duration=4", "eval.predictions=false"]
        assert train(tmp_path / "without", *options) == 0
    assert checkpoint_files(tmp_path / "without", 4) == checkpoint_files(trained / "run", 4)
    assert [file.name for file in (tmp_path / "without/eval").iterdir()] == ["test.json"]
    plain, kept = score(tmp_path / "without"), score(trained / "run")
    assert kept.pop("intervals").keys() == {"loss", "accuracy", "macro_f1"}
    del plain["checksum"], kept["checksum"]
    assert plain == kept

    with working_in(trained):
        assert main(["train", f"resume={tmp_path}/without", "eval.predictions=true", "train.duration=5"]) == 0
        run = tmp_path / "without/eval"
        assert {file.name for file in run.glob("*.parquet")} == {
            "test.predictions.parquet",
            "validation.predictions.parquet",
        }
        assert main(["eval", f"run={tmp_path}/without", "device=cpu", "predictions=false"]) == 0
    assert {file.name for file in run.glob("*.parquet")} == {"validation.predictions.parquet"}
