"""The lock of a run folder."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from trainer.checkpoint.lock import run_lock
from trainer.errors import CheckpointError

HOLDER = r"""
import os, sys
from pathlib import Path
from trainer.checkpoint.lock import run_lock
with run_lock(Path(sys.argv[1])):
    if len(sys.argv) > 2 and os.fork() == 0:
        os.write(1, b"forked\n")
        sys.stdin.read()
        os._exit(0)
    os.write(1, b"held\n")
    sys.stdin.read()
"""


def start(folder, *arguments):
    command = [sys.executable, "-c", HOLDER, str(folder), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_second_process_is_refused(tmp_path):
    with start(tmp_path) as holder:
        assert holder.stdout.readline() == "held\n"
        message = rf"{tmp_path}: the run folder is in use by process {holder.pid} on \S+\. Wait until that"
        with pytest.raises(CheckpointError, match=message), run_lock(tmp_path):
            pass
        holder.stdin.close()
        holder.wait()
    with run_lock(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")


def test_killed_holder_releases_the_lock(tmp_path):
    with start(tmp_path) as holder:
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with run_lock(tmp_path):
            pass


def test_worker_that_outlives_its_killed_parent_does_not_hold_the_lock(tmp_path):
    with start(tmp_path, "fork") as holder:
        assert {holder.stdout.readline(), holder.stdout.readline()} == {"held\n", "forked\n"}
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with run_lock(tmp_path):
            pass
        holder.stdin.close()


def test_lock_is_exclusive_and_released_on_exit(tmp_path):
    folder = tmp_path / "runs" / "new"
    held_here = f"in use by process {os.getpid()} "
    for _ in range(2):
        with run_lock(folder), pytest.raises(CheckpointError, match=held_here), run_lock(folder):
            pass
    with pytest.raises(ValueError, match="inside"), run_lock(folder):
        raise ValueError("inside")
    with run_lock(folder):
        pass


def test_unwritable_folder_is_an_error(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(CheckpointError, match=r"\.lock: cannot be opened: Permission denied"), run_lock(tmp_path):
        pass


def test_folder_removed_by_the_previous_holder_is_created_again(tmp_path, monkeypatch):
    folder, flock = tmp_path / "run", fcntl.flock

    def removed_before(*arguments):
        monkeypatch.undo()
        (folder / ".lock").unlink()
        folder.rmdir()
        flock(*arguments)

    monkeypatch.setattr("fcntl.flock", removed_before)
    with run_lock(folder):
        assert (folder / ".lock").read_text().startswith(str(os.getpid()))
        with pytest.raises(CheckpointError, match="in use"), run_lock(folder):
            pass
