"""The start and the stop of a run: a run that cannot start changes nothing; a stopped run says how to resume."""

import os
import shutil
import signal
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from torch import Tensor

from tests.support.jobs import checkpoint_files, events, train, working_in, write_csv, write_data
from trainer import capture
from trainer.cli import main
from trainer.loss.cross_entropy import CrossEntropy


class Stopping(CrossEntropy):
    """Cross entropy that sends its process SIGTERM, once."""

    stopped = False

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        if not Stopping.stopped:
            Stopping.stopped = True
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__call__(output, target)


STOPPING = ["loss._target_=tests.commands.test_train.Stopping", "loss.weight=null", "loss.label_smoothing=0.0"]
STOPPING += ["loss.ignore_index=-100"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("train")
    with working_in(made):
        assert train(made / "run", *write_data(made), "train.duration=4", "checkpoint.every=1") == 0
        yield made


def content(folder: Path) -> dict[str, bytes]:
    """Return every file except the lock, which contains the process that holds it."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_training_events_contain_tokens_and_memory(folder: Path) -> None:
    logged = events(folder / "run", "train")

    assert logged
    for event in logged:
        assert event["tokens_per_second"] > event["samples_per_second"]
        assert event["memory"] > 50_000_000  # a process with torch


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        (["device=cuda"], 2),
        (["data.label=nothing"], 6),
        (["loss.weight=[1,2]"], 2),
        (["optimizer.overrides=[{match:nothing,lr:1}]"], 2),
    ],
)
def test_run_that_never_started_leaves_nothing(overrides: list[str], code: int, tmp_path: Path) -> None:
    with working_in(tmp_path):
        data = write_data(tmp_path)
        assert train(tmp_path / "new", *data, *overrides) == code

    assert not (tmp_path / "new").exists()


def test_run_that_never_started_leaves_its_folder_empty(tmp_path: Path) -> None:
    with working_in(tmp_path):
        data = [*write_data(tmp_path), "data.label=nothing"]
        (tmp_path / "existing").mkdir()
        assert train(tmp_path / "existing", *data) == 6
        assert main(["train", *data]) == 6
        assert main(["train", *data, "run.name=nightly", "resume=auto"]) == 6

    assert not list((tmp_path / "existing").iterdir())
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("fault", "overrides", "code", "message"),
    [
        ("data", ["train.duration=34ep"], 6, "data.train: no such file"),
        ("content", ["train.duration=34ep", "logger.tensorboard=true"], 3, "data: the data has changed"),
        # Even if the data could not be read.
        ("data", ["train.duration=2", "export.formats=[torchscript]"], 2, "train.duration: ends at step 2, before the"),
        (None, ["device=cuda", "train.duration=9"], 2, "device: is not available"),
    ],
)
def test_failing_resume_changes_nothing(
    fault: str | None,
    overrides: list[str],
    code: int,
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    before = content(tmp_path / "run")
    file, kept = folder / "train.csv", tmp_path / "kept.csv"
    shutil.copyfile(file, kept)
    if fault == "data":
        file.unlink()
    if fault == "content":
        file.write_text(kept.read_text().replace("pear", "plum"))
    try:
        assert main(["train", f"resume={tmp_path / 'run'}", *overrides]) == code
    finally:
        shutil.copyfile(kept, file)

    assert message in capsys.readouterr().err
    assert content(tmp_path / "run") == before
    assert (tmp_path / "run" / ".lock").exists()


def test_duration_before_the_checkpoint_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"resume={folder / 'run'}", "train.duration=0.25ep"]) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("train.duration: ends at step 2, before the checkpoint's step 4, got '0.25ep'. ")
    )


def test_resume_with_other_versions_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(folder / "run", tmp_path / "run")
    assert main(["train", f"resume={run}", "train.duration=5"]) == 0
    assert " then, " not in (run / "trainer.log").read_text()
    # Builds of torch for the CPU have no Triton, which was then not recorded, and is now installed.
    triton = capture.current_versions().get("triton")
    monkeypatch.setattr(capture, "version", lambda name: "0.1" if name in ("torch", "triton") else version(name))
    capture._versions.cache_clear()
    assert main(["train", f"resume={run}", "train.duration=6"]) == 0
    told = [line for line in (run / "trainer.log").read_text().splitlines() if " then, " in line]
    assert len(told) == 1
    changed = f", triton {triton} then, 0.1 now" if triton else ""
    assert told[0].endswith(f"not stopped (torch {version('torch')} then, 0.1 now{changed})")

    monkeypatch.setattr(capture, "version", version)
    capture._versions.cache_clear()
    capsys.readouterr()
    assert main(["verify", f"run={run}"]) == 0
    assert f"versions      torch 0.1 then, {version('torch')} now, triton 0.1 then, " in capsys.readouterr().out


def test_empty_cache_does_not_change_training(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing that is opened before the first step draws from a random generator either.
    for name, more in (("warm", []), ("cold", ["logger.tensorboard=true"])):
        shutil.copytree(folder / "run", tmp_path / name)
        if name == "cold":
            monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))
        assert main(["train", f"resume={tmp_path / name}", "train.duration=6", *more]) == 0

    assert checkpoint_files(tmp_path / "cold", 6) == checkpoint_files(tmp_path / "warm", 6)


def test_printed_resume_command_is_complete(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "a run"
    Stopping.stopped = False
    assert train(run, *write_data(folder), *STOPPING, "train.duration=4") == 75
    command = capsys.readouterr().err.splitlines()[-1].removeprefix("Resume with: ")

    assert command == f"trainer train 'resume={run}' trust=[tests]"
    assert train(run, *write_data(folder), *STOPPING) == 3
    assert f"Resume it with {command.removeprefix('trainer train ')}, or name" in capsys.readouterr().err
    assert main(["train", f"resume={run}", "trust=[tests]"]) == 0
    capsys.readouterr()
    assert main(["predict", f"run={run}", "trust=[tests]", "input=a pear", "backend=onnx"]) == 3
    assert f"trainer export 'run={run}' trust=[tests] export.formats=[onnx]" in capsys.readouterr().err


def test_relative_paths_start_where_the_run_was_started(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with working_in(tmp_path):
        data = [text.replace(f"{tmp_path}/", "") for text in write_data(tmp_path) if "cache_dir" not in text]
        data += ["data.train=[trai*.csv]", f"data.cache_dir={tmp_path}/cache", "checkpoint.every=1"]
        assert train(Path("run"), *data, "train.duration=3") == 0
        shutil.copytree("run", "there")
        assert main(["train", "resume=there", "train.duration=5"]) == 0
    with working_in(tmp_path / "elsewhere"):
        # Has the same name but does not belong to the run.
        write_csv(tmp_path / "elsewhere" / "test.csv", 20, seed=8)
        assert main(["train", "resume=../run", "train.duration=5"]) == 0
        assert main(["verify", "run=../run"]) == 0
        assert main(["eval", "run=../run", "device=cpu"]) == 0
        assert main(["eval", "run=../run", "device=cpu", "data.test=test.csv"]) == 0

    assert checkpoint_files(tmp_path / "run", 5) == checkpoint_files(tmp_path / "there", 5)
    # The stored config keeps relative paths, so data that is moved together with its run is found.
    stored = [(tmp_path / name / "config.yaml").read_text() for name in ("there", "run")]
    assert stored[0] == stored[1].replace("resume: ../run", "resume: there")
    names = {path.name for path in (tmp_path / "run" / "eval").glob("*.json")}
    assert len(names) == 3
    assert {"test.json", "validation.json"} <= names
    assert len([*(tmp_path / "run" / "eval").glob("*.predictions.parquet")]) == 3
    (tmp_path / "moved").mkdir()
    for name in ("run", "train.csv", "validation.csv", "test.csv"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    with working_in(tmp_path / "moved"):
        assert main(["eval", "run=run", "device=cpu", "split=train"]) == 0


def test_fp16_on_a_cpu_logs_one_warning(folder: Path) -> None:
    assert train(folder / "half", *write_data(folder), "train.duration=2", "precision=fp16") == 0
    counts = [
        (folder / name / "trainer.log").read_text("utf-8").count("precision: fp16 is many times slower")
        for name in ("half", "run")
    ]
    assert counts == [1, 0]


def test_tf32_on_a_cpu_is_fp32_and_says_so(folder: Path, tmp_path: Path) -> None:
    with working_in(folder):
        run = tmp_path / "tf32"
        assert train(run, *write_data(folder), "train.duration=4", "checkpoint.every=1", "precision=tf32") == 0

    assert "precision: tf32 is fp32 on this device" in (run / "trainer.log").read_text("utf-8")
    assert checkpoint_files(run, 4) == checkpoint_files(folder / "run", 4)
