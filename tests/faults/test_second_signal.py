"""A second signal ends a run at once: what was reported as saved is on the disk, and a message says how to go on."""

import os
import re
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.jobs import TINY, checkpoint_files, checkpoint_steps, events, train, working_in, write_data
from tests.support.processes import PATIENCE, run_command, server, wait_until
from trainer.cli import main

STEPS = 12
JOB = [*TINY, f"train.duration={STEPS}", "train.eval_every=4", "checkpoint.every=4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("second")
    with working_in(folder):
        yield write_data(folder)


def run_on_stuck_disk(saves: int, arguments: list[str], *rest: object) -> None:
    """Run a command whose checkpoints after the first `saves` never reach the disk."""
    rename, done = os.rename, 0

    def rename_or_wait(source: Path, target: Path) -> None:
        nonlocal done
        if threading.current_thread().name.startswith("checkpoint") and "step-" in str(target):
            done += 1
            if done > saves:
                time.sleep(600)
        rename(source, target)

    os.rename = rename_or_wait  # type: ignore[assignment]
    run_command(arguments, *rest)  # type: ignore[arg-type]


def stop_twice(run_dir: Path, saves: int, data: list[str]) -> tuple[int | None, str]:
    """Send two signals to a run that hangs in the save after `saves`; return its exit code and output."""
    output = run_dir.with_suffix(".txt")
    environment = {"TRAINER_CACHE": os.environ["TRAINER_CACHE"]}
    arguments = ["train", f"run.dir={run_dir}", *JOB, *data]
    process = server.Process(
        target=run_on_stuck_disk, args=(saves, arguments, str(Path.cwd()), environment, str(output))
    )
    process.start()
    assert process.pid is not None
    waiting: list[Callable[[], bool]] = [
        lambda: (run_dir / "checkpoints" / f".tmp-step-{4 * (saves + 1):08d}" / "MANIFEST.json").exists(),
        lambda: "Stopping after this step" in output.read_text(),
    ]
    for ready in waiting:
        wait_until(ready, process)
        os.kill(process.pid, signal.SIGINT)
    process.join(PATIENCE)
    return process.exitcode, output.read_text()


@pytest.mark.parametrize("saves", [0, 1])
def test_second_signal_keeps_what_was_reported_as_saved(saves: int, data: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    code, output = stop_twice(run_dir, saves, data)
    assert code == -signal.SIGINT, output
    assert "Stopping after this step; press again to stop without saving\n" in output
    durable = [4][:saves]
    assert [event["step"] for event in events(run_dir, "checkpoint")] == durable
    assert checkpoint_steps(run_dir) == durable
    if not saves:
        assert output.endswith("Stopped without saving.\nNo checkpoint was saved yet. Start the run again.\n")
        return
    newest = run_dir / "checkpoints" / "step-00000004"
    said = re.search(r"Stopped without saving\.\nThe newest checkpoint is (.+)\.\nResume with: trainer (.+)\n$", output)
    assert said is not None, output
    assert said[1] == str(newest)
    assert main(shlex.split(said[2])) == 0
    assert train(tmp_path / "whole", *JOB, *data) == 0
    assert checkpoint_files(run_dir, STEPS) == checkpoint_files(tmp_path / "whole", STEPS)


def test_checkpoint_is_reported_when_it_is_durable(data: list[str], tmp_path: Path) -> None:
    run_dir, missing = tmp_path / "run", []
    rename = os.rename

    def check(source: Path, target: Path) -> None:
        if "step-" in Path(target).name and Path(source).name.startswith(".tmp-"):
            step = int(Path(target).name.removeprefix("step-"))
            missing.append(step not in [event["step"] for event in events(run_dir, "checkpoint")])
        rename(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", check)
        assert train(run_dir, *JOB, *data) == 0
    assert missing == [True] * 3
    assert [event["step"] for event in events(run_dir, "checkpoint")] == [4, 8, 12]
