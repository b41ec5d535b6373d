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


def test_a_second_process_is_refused(tmp_path):
    with start(tmp_path) as holder:
        assert holder.stdout.readline() == "held\n"
        message = rf"{tmp_path}: the run folder is in use by process {holder.pid} on \S+\. Wait until"
        with pytest.raises(CheckpointError, match=message), run_lock(tmp_path):
            pass
        holder.stdin.close()
        holder.wait()
    with run_lock(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")


def test_a_killed_holder_does_not_block(tmp_path):
    with start(tmp_path) as holder:
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with run_lock(tmp_path):
            pass


def test_a_worker_that_outlives_its_killed_parent_does_not_block(tmp_path):
    with start(tmp_path, "fork") as holder:
        assert {holder.stdout.readline(), holder.stdout.readline()} == {"held\n", "forked\n"}
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with run_lock(tmp_path):
            pass
        holder.stdin.close()


def test_it_is_held_once_and_given_back(tmp_path):
    folder = tmp_path / "runs" / "new"
    held_here = f"in use by process {os.getpid()} "
    for _ in range(2):
        with run_lock(folder), pytest.raises(CheckpointError, match=held_here), run_lock(folder):
            pass
    with pytest.raises(ValueError, match="inside"), run_lock(folder):
        raise ValueError("inside")
    with run_lock(folder):
        pass


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(CheckpointError, match=r"\.lock: cannot be opened: Permission denied"), run_lock(tmp_path):
        pass


def test_a_folder_that_is_removed_while_it_is_waited_for_is_made_anew(tmp_path, monkeypatch):
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
