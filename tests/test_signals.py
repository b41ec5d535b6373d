import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import pytest

from trainer.errors import Interrupted
from trainer.signals import STOP_SIGNALS, StopSignals, end_with_parent_thread, signals_blocked


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_deferred_signal_is_recorded(number: signal.Signals) -> None:
    with StopSignals() as signals:
        with signals.deferred():
            assert not signals.should_stop()
            os.kill(os.getpid(), number)
            assert signals.should_stop()
        with pytest.raises(Interrupted, match=f"stopped by {number.name}"):
            signals.raise_if_received()


def test_a_signal_outside_a_deferred_block_raises_at_once() -> None:
    with StopSignals(), pytest.raises(Interrupted, match="SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.skipif(sys.platform != "linux", reason="multiprocessing starts no processes by fork elsewhere")
def test_a_process_whose_parent_has_ended_before_it_was_ready_ends() -> None:
    fork = multiprocessing.get_context("fork")
    for parent, code in ((os.getpid(), 0), (os.getppid(), -signal.SIGKILL)):
        process = fork.Process(target=end_with_parent_thread, args=(parent,))
        process.start()
        process.join()
        assert process.exitcode == code


def test_signal_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopSignals(), pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)

    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_a_second_signal_ends_the_process() -> None:
    script = (
        "import os, signal\n"
        "from trainer.signals import StopSignals\n"
        "with StopSignals() as signals, signals.deferred():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('once', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('twice', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert done.stdout == "once\n"
    assert done.returncode == -signal.SIGTERM


def test_one_of_several_processes_ignores_further_signals() -> None:
    script = (
        "import os, signal\n"
        "from trainer.signals import StopSignals\n"
        "with StopSignals(ends_on_second=False) as signals, signals.deferred():\n"
        "    with signals.deferred():\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(signals.received.name, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "print('end')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert (done.stdout, done.returncode) == ("SIGTERM\nend\n", 0)


def test_a_blocked_signal_arrives_when_a_process_is_ready() -> None:
    with signals_blocked():
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"), StopSignals():
            pass


def test_an_error_that_a_signal_caused_in_a_library_is_a_stop() -> None:
    def import_part() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception as error:
            raise ImportError("no such part") from error

    with pytest.raises(Interrupted, match="stopped by SIGTERM"), StopSignals():
        import_part()


def test_the_time_of_a_run_starts_with_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("trainer.signals.time.monotonic", lambda: clock[0])
    signals, unlimited = StopSignals(max_seconds=30), StopSignals()
    for now, is_over in ((100.0, False), (129.9, False), (130.0, True)):
        clock[0] = now
        assert (signals.is_out_of_time(), unlimited.is_out_of_time()) == (is_over, False)
    assert not signals.should_stop()
