"""A pipe, a device, a socket, or a folder in the place of a file: one message with the key, and nothing waits."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.jobs import TINY, write_csv
from trainer.cli import main
from trainer.config import jobs, schema, signatures
from trainer.config.command import check_command
from trainer.config.groups import Groups, own_folder
from trainer.config.stored import config_text
from trainer.constraints.values import paths_in

TEXTS = ("train", *TINY, "data=files", "data.train=train.csv", "run.dir=new")
SIMILAR = ("predict", "run=run", "input=apple", "neighbours=2")
IMAGES = ("train", "task=image_classification", "model=lenet", "run.dir=new")

COMMANDS: dict[str, tuple[str, ...]] = {
    "data.train": TEXTS,
    "data.validation": TEXTS,
    "data.test": TEXTS,
    "data.corrections": TEXTS,
    "data.root": (*IMAGES, "data=imagefolder"),
    "data.folder": (*IMAGES, "data=idx"),
    "data.path": ("train", "data=hub", "run.dir=new"),
    "task.tokenizer": TEXTS,
    "model.path": ("train", "model=pretrained", "data=files", "data.train=train.csv", "run.dir=new"),
    "model.weights": TEXTS,
    "loss.teacher": (*TEXTS, "loss=kl_distillation"),
    "run.dir": TEXTS,
    "run.cwd": TEXTS,
    "resume": ("train",),
    "run": ("predict", "input=apple"),
    "left": ("diff", "right=run"),
    "right": ("diff", "left=run"),
    "beside": ("report", "run=run"),
    "output": ("report", "run=run"),
    "corpus": SIMILAR,
    "input": ("predict", "run=run"),
    "path": ("init",),
    "folder": ("serve",),
}
"""A command for each key whose value is a path."""

SPECIAL = ("fifo.csv", "/dev/zero", "socket.csv")

FOLDERS = {
    "data.root",
    "data.folder",
    "run.dir",
    "run.cwd",
    "resume",
    "run",
    "left",
    "right",
    "folder",
}
"""Keys that need a folder, so a file is wrong."""

FILES = {"data.train", "data.validation", "data.test", "output"}
"""Keys that need a file, so a folder is wrong."""


@pytest.fixture
def _special_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working directory with something of each type, in which no call may take more than a minute."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo.csv")
    Path("folder").mkdir()
    write_csv(Path("train.csv"))
    write_csv(Path("file.csv"))
    # What a command reads before the path.
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/metrics.jsonl").touch()
    single = check_command("train", []).single
    assert single is not None
    (tmp_path / "run/config.yaml").write_text(config_text(single.config), encoding="utf-8")

    def fail(*_: object) -> None:
        raise AssertionError("waits for a pipe or a device")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.csv")
        yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("_special_files")
@pytest.mark.parametrize("is_whole", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("key", COMMANDS)
def test_every_path(key: str, is_whole: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """Every type for every key; quickly, one special file for each key, in turn."""
    number = [*COMMANDS].index(key) % len(SPECIAL)
    wrong = SPECIAL if is_whole else SPECIAL[number : number + 1]
    for path in (*wrong, *(["file.csv"] if key in FOLDERS else ["folder"] if key in FILES else [])):
        value = f"[{path}]" if key == "beside" else path
        code = main([*COMMANDS[key], f"{key}={value}"])
        error = capfd.readouterr().err
        assert code in (2, 3, 6), (path, code, error)
        assert error.startswith(f"{key}: "), (path, error)
        assert path in error, (path, error)
        assert len(error.splitlines()) == 1, (path, error)
        assert "no such" not in error, (path, error)
        assert not Path("new").exists()


def test_every_key_of_a_path_is_tried() -> None:
    values = ("x", ["x"], {"images": "x"})
    keys = {
        f"{name}.{key}" if name else key
        for job in jobs.JOBS.values()
        for name, section in {"": job, **schema.sections(job)}.items()
        for key, annotation in schema.keys(section).items()
        if any(True for value in values for _ in paths_in(value, annotation))
    }
    groups = Groups((own_folder(),))
    for group in schema.groups(jobs.TrainJob):
        for option in groups.options(group):
            target = groups.content(group, option).get("_target_")
            signature = signatures.read(str(target))
            annotations = schema.shared_keys(jobs.TrainJob, group) | dict(signature.annotations if signature else {})
            keys |= {
                f"{group}.{key}"
                for key, each in annotations.items()
                if any(True for v in values for _ in paths_in(v, each))
            }
    # `data.mix` names files of `data.train`.
    assert keys - COMMANDS.keys() <= {"data.images", "data.labels", "data.mix"}, keys - COMMANDS.keys()
