"""A lost worker, a lack of memory or a failing disk ends a run with one message that says what to do."""

import errno
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.jobs import train, working_in, write_data
from trainer.cli import main
from trainer.commands.resume_advice import resume_instruction_added
from trainer.errors import LostWorkerError, find_user_error

JOB = ("train.duration=30", "train.eval_every=30", "checkpoint.every=4", "loader.workers=1", "loader.prefetch=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("workers")
    with working_in(folder):
        yield write_data(folder)


# torch opens files and leaves them to the garbage collector, to see if any are left, when a worker is killed while it
# passes a tensor on.
@pytest.mark.filterwarnings("ignore:unclosed file <_io.BufferedRandom:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("number", "key"), [(signal.SIGKILL, "loader.workers: "), (signal.SIGSTOP, "loader.timeout: ")]
)
def test_lost_worker_stops_the_run_which_can_be_resumed(
    number: signal.Signals, key: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, rename, signaled = tmp_path / "run", os.rename, threading.Event()

    class Timer(threading.Thread):
        """Ends when the worker gets its signal, however long a slow machine takes to get there."""

        def __init__(self, seconds: float, expire: Callable[[], None]) -> None:
            super().__init__(daemon=True)
            assert seconds == 600
            self.is_over, self._expire = False, expire

        def run(self) -> None:
            signaled.wait()
            if not self.is_over:
                self._expire()

        def cancel(self) -> None:
            self.is_over = True

    def signal_worker(source: Path, target: Path) -> None:
        rename(source, target)
        if Path(target).name == "step-00000004":
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, number)
            if number == signal.SIGSTOP:
                signaled.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", signal_worker)
        patch.setattr("trainer.data.batches.threading.Timer", Timer)
        assert train(run_dir, *data, *JOB, "loader.timeout=600") == 75
    signaled.set()
    message = capsys.readouterr().err
    assert message.startswith(key), message
    assert f"Resume with: trainer train resume={run_dir}\n" in message
    assert len(message.splitlines()) == 2
    for worker in multiprocessing.active_children():
        worker.kill()
    assert main(["train", f"resume={run_dir}", "loader.workers=0"]) == 0


@pytest.mark.parametrize("problem", ["DataLoader worker (pid 7) is killed by signal: Killed.", "DataLoader timed out"])
def test_a_second_report_of_a_lost_worker_keeps_the_advice_of_the_first(problem: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoints/step-00000004").mkdir(parents=True)

    def run() -> None:
        try:
            with resume_instruction_added(tmp_path):
                raise RuntimeError(problem)
        finally:  # torch reports it wherever the program is
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    with pytest.raises(LostWorkerError) as raised, resume_instruction_added(None):
        run()

    assert str(raised.value).startswith("loader.timeout" if "timed out" in problem else "loader.workers")
    assert raised.value.messages[1:] == (f"Resume with: trainer train resume={tmp_path}",)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9")],
)
def test_out_of_memory_names_the_keys_to_lower(error: Exception) -> None:
    found = find_user_error(error)
    assert found is not None
    assert found.exit_code == 2
    for key in ("train.accumulate", "train.batch_size", "task.max_length", "loader.eval_batch_size"):
        assert key in str(found)
    assert find_user_error(RuntimeError("shapes differ")) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO])
def test_failing_disk_is_an_error_of_the_user_wherever_it_is_met(number: int) -> None:
    error = RuntimeError("a library failed")
    error.__cause__ = OSError(number, os.strerror(number), "/disk/file")
    found = find_user_error(error)
    assert found is not None
    assert found.exit_code == 3
    assert str(found).startswith(f"/disk/file: cannot be written: {os.strerror(number)}. ")
    assert find_user_error(OSError(errno.ENOENT, "missing", "/disk/file")) is None


def test_a_folder_that_may_not_be_entered_is_an_error_of_the_user() -> None:
    found = find_user_error(PermissionError(errno.EACCES, os.strerror(errno.EACCES), "run/config.yaml"))
    assert found is not None
    assert str(found).startswith("run/config.yaml: permission denied. ")
    assert find_user_error(PermissionError(errno.EPERM, "a call that is not allowed, of no file")) is None
