"""Files and folders that are not there, message before torch is loaded."""

from pathlib import Path

import pytest

from trainer.config import jobs
from trainer.config.command import check_command
from trainer.config.jobs import TrainJob
from trainer.config.paths import locate_paths
from trainer.errors import CheckpointError, ConfigError, DataError

KL = {"_target_": "trainer.loss.kl_distillation.KlDistillation"}


def errors_of(*overrides: str) -> tuple[str, ...]:
    with pytest.raises((ConfigError, DataError)) as caught:
        check_command("train", overrides)
    return caught.value.messages


def test_missing_data_is_a_data_error(elsewhere: Path) -> None:
    (elsewhere / "valid.csv").touch()
    with pytest.raises(DataError) as caught:
        check_command("train", ["data=files", "data.train=[q.csv,valid.csv]", "data.validation=vald.csv"])
    assert caught.value.messages == (
        f"data.train: no such file, got 'q.csv'. Paths are relative to {elsewhere}.",
        "data.validation: no such file, got 'vald.csv'. Did you mean valid.csv?",
    )


@pytest.mark.parametrize(
    ("value", "near"),
    [
        ("abc.csv", ""),
        ("pakages.csv", "packages.csv"),
        ("packages.tsv", "packages.csv"),
        ("packages.cs", "packages.csv"),
    ],
)
def test_a_common_suffix_makes_no_names_similar(value: str, near: str, elsewhere: Path) -> None:
    for name in ("out.csv", "packages.csv", "packages.jsonl", "z.cs"):
        (elsewhere / name).touch()
    (message,) = errors_of("data=files", f"data.train={value}")
    assert message.endswith(f"Did you mean {near}?" if near else f"Paths are relative to {elsewhere}.")


def test_missing_data_is_reported_with_other_errors() -> None:
    with pytest.raises(ConfigError) as caught:
        check_command("train", ["data=files", "data.train=a.csv", "optimizer.lr=-1", "model.weights=w.pth"])
    assert [message.split(",")[0] for message in caught.value.messages] == [
        "optimizer.lr: must be greater than 0",
        "model.weights: no such file or folder",
        "data.train: no such file",
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=image_classification", "data=imagefolder", "data.root=x"], "data.root: no such folder, got 'x'"),
        (["task=image_classification", "data=idx", "data.folder=x"], "data.folder: no such folder, got 'x'"),
        (["data=lines", "task=masked_lm", "data.train=x.txt"], "data.train: no such file, got 'x.txt'"),
        (["loss=kl_distillation", "loss.teacher=runs/x"], "loss.teacher: no such file or folder, got 'runs/x'"),
        (["model=pretrained", "model.path=./x"], "model.path: no such file or folder, got './x'"),
        (["task.tokenizer='~/x/t.json'"], "task.tokenizer: no such file or folder, got '~/x/t.json'"),
    ],
)
def test_each_key_that_names_a_path(overrides: list[str], message: str) -> None:
    (message,) = errors_of(*overrides)
    assert message.startswith(message)


def test_patterns_and_hub_names_are_not_checked(elsewhere: Path) -> None:
    (elsewhere / "mine.py").write_text("def load(train): ...\n", encoding="utf-8")
    check_command("train", ["data=files", "data.train=part-*.csv"])
    check_command("train", ["model=pretrained", "model.path=owner/name"])
    check_command("train", ["model=pretrained", "model.path=bert-base-uncased"])
    check_command("train", ["data=hub", "data.path=owner/name"])
    assert check_command("train", ["data=files", "data.train=nowhere.csv", "--cfg", "job"]).line.verb == "train"


def test_existing_paths_are_resolved_against_run_cwd(elsewhere: Path) -> None:
    start = elsewhere / "start"
    start.mkdir()
    for name in ("a.csv", "b.csv", "pixels"):
        (start / name).touch()
    config = {"run": {"cwd": str(start)}, "loss": KL | {"teacher": "b.csv"}, "model": {"weights": "b.csv"}}
    files = {
        "_target_": "trainer.data.files.Files",
        "train": ["a.csv", "gone.csv"],
        "test": "[ab].csv",
        "text": "a.csv",
    }
    moved = locate_paths(config | {"data": files}, TrainJob)

    assert moved["data"] == files | {"train": [f"{start}/a.csv", "gone.csv"], "test": f"{start}/[ab].csv"}
    assert (moved["loss"], moved["model"]) == (KL | {"teacher": f"{start}/b.csv"}, {"weights": "b.csv"})
    idx = {"_target_": "trainer.data.idx.Idx", "folder": None, "train": {"images": "pixels", "labels": "/pixels"}}
    assert locate_paths(config | {"data": idx}, TrainJob)["data"]["train"] == {
        "images": f"{start}/pixels",
        "labels": "/pixels",
    }
    for same in ({}, {"run": "runs/x", "data": files}, config | {"run": {"cwd": None}}, {"run": {"cwd": "."}}):
        assert locate_paths(same, TrainJob) == same


PATHS = {
    "init": ["path"],
    "train": ["resume", "run.dir", "run.cwd"],
    "plan": ["resume", "run.dir", "run.cwd"],
    "eval": ["run"],
    "export": ["run"],
    "predict": ["run", "output", "corpus"],
    "generate": ["run", "output"],
    "verify": ["run"],
    "diff": ["left", "right"],
    "report": ["run", "beside", "output"],
    "schema": ["output"],
    "doctor": [],
    "serve": ["folder", "run"],
    "card": ["run", "output"],
    "push": ["run"],
}
"""The keys of each verb that are paths, next to those of the parts."""


@pytest.mark.parametrize("verb", jobs.JOBS)
def test_home_is_expanded_in_every_path(verb: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(elsewhere))
    for path in PATHS[verb]:
        section, _, key = path.rpartition(".")
        value, expanded = ("~/x", f"{elsewhere}/x") if key != "beside" else (["~/x"], [f"{elsewhere}/x"])
        located = locate_paths({section: {key: value}} if section else {key: value}, jobs.JOBS[verb])
        assert (located[section] if section else located)[key] == expanded, path


def test_home_is_expanded_before_a_run_is_read(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(elsewhere))
    for verb, key in (("train", "resume"), ("eval", "run"), ("predict", "run")):
        with pytest.raises(CheckpointError) as caught:
            check_command(verb, [f"{key}=~/gone"])
        assert f"got '{elsewhere}/gone'" in str(caught.value)
    with pytest.raises(DataError, match=f"got '{elsewhere}/gone.csv'"):
        check_command("train", ["data=files", "data.train=[~/gone.csv]"])


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x.csv", "~nobody-of-this-name", "~0"])
def test_an_unknown_user_is_a_missing_file(path: str) -> None:
    assert errors_of("data=files", f"data.train='{path}'")[0].startswith(f"data.train: no such file, got '{path}'.")
    assert errors_of(f"model.weights='{path}'")[0].startswith(f"model.weights: no such file or folder, got '{path}'.")
