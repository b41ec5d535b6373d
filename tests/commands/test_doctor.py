"""`trainer doctor`: each line is right about the machine, and says what to do."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import PATIENCE
from trainer.cli import main
from trainer.commands import doctor, doctor_checks
from trainer.commands.doctor_checks import (
    Check,
    HubCheck,
    check_compiler,
    check_file_system,
    check_folder,
    check_memory,
    check_packages,
    check_shared_memory,
)
from trainer.report.console import open_console

CLOSED = "http://127.0.0.1:9"
NAMES = ["python", "packages", "extras", "torch", "device", "attention", "compiler", "memory", "shared", "runs"]
NAMES += ["file", "clock", "cache", "hub"]
"""The first word of what each line is about."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory is empty, and the hub is a port at which nobody listens."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))


def statuses(output: str) -> dict[str, str]:
    return {
        line.split()[1]: line.split()[0] for line in output.splitlines() if line.startswith(("ok ", "note", "prob"))
    }


def test_every_line_has_a_status_and_the_order_is_fixed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--quick"]) == 0
    output = capsys.readouterr().out
    found = statuses(output)
    assert list(found) == NAMES
    assert "problem" not in found.values()
    assert found["hub"] == "note"
    assert CLOSED in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ImportError('libcudart.so.13 is missing')", "cannot be used: ImportError: libcudart.so.13 is missing."),
        ("import os; os.abort()", "cannot be used: killed by SIGABRT."),
    ],
)
def test_a_torch_that_is_broken_is_named_and_the_other_checks_go_on(
    source: str, reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "torch.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    assert main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert f"problem  torch          {reason} pip install --force-reinstall torch" in captured.out
    assert "problem  training       not tried, as torch does not work. See the line torch." in captured.out
    assert statuses(captured.out)["memory"] == "ok"
    assert captured.err.startswith("doctor: ")
    assert "lines that begin with problem" in captured.err


@pytest.mark.slow
@pytest.mark.parametrize("argument", ["run.dir=whole", "resume="])
def test_a_signal_leaves_no_training(argument: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", "doctor"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    trainings: list[Path] = []
    while process.poll() is None and not trainings:
        time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        trainings = [Path("/proc", each) for each in children if argument in Path("/proc", each, "cmdline").read_text()]
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (75, "stopped by SIGTERM\n")
    assert not list(tmp_path.glob(".trainer-doctor-*"))
    assert [each for each in trainings if not each.exists()] == trainings != []


def test_packages_out_of_range_and_missing_extras_have_a_line_to_paste(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["numpy>=99", "rich>=1", "no-such-package>=2", "pyyaml; extra == 'good'", 'nowhere>=1; extra == "bad"']
    declared += [f"no-tool; extra == '{extra}'" for extra in ("dev", "docs", "interop")]
    monkeypatch.setattr(doctor_checks, "requires", lambda name: declared)
    packages, extras = check_packages()
    assert (packages.status, packages.remedy) == ("problem", 'pip install "numpy>=99" "no-such-package>=2"')
    assert "is not >=99, no-such-package is missing" in packages.text
    assert (extras.status, extras.text) == ("note", "installed: good; missing: bad")
    assert extras.remedy == 'To add them: pip install "trainer[bad]"'


def test_folders_that_cannot_be_written_are_problems(tmp_path: Path) -> None:
    (good,) = check_folder("runs", tmp_path / "new" / "runs", "Go elsewhere")
    assert good.status in ("ok", "note")
    (bad,) = check_folder("runs", Path("/proc/runs"), "Go elsewhere")
    assert (bad.status, bad.remedy) == ("problem", "Go elsewhere")
    assert list(check_file_system(Path("/proc/runs"))) == []
    assert [check.status for check in check_file_system(tmp_path)] == ["ok", "ok"]
    assert list(tmp_path.iterdir()) == []


def test_little_memory_and_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_memory(10**9).status == "problem"
    assert check_memory(3 * 10**9).status == "note"
    assert check_shared_memory(tmp_path / "none").status == "problem"
    monkeypatch.setenv("CXX", "false")
    assert check_compiler(has_gpu=False).status == "note"
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_compiler(has_gpu=False).text.startswith("no C++ compiler")


class Hub(BaseHTTPRequestHandler):
    """A hub whose clock is years behind."""

    def do_HEAD(self) -> None:
        self.send_response_only(404)
        self.send_header("Date", "Tue, 01 Jan 2030 00:00:00 GMT" if self.path == "/" else "no date")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_hub_answers_or_not_and_tells_the_time(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (silent,) = HubCheck().results()
    assert (silent.status, "Connection refused" in silent.text) == ("note", True)
    monkeypatch.setenv("HF_ENDPOINT", f"{hub}/")
    answer, clock = HubCheck().results()
    assert (answer.status, clock.status, clock.name) == ("ok", "note", "clock")
    monkeypatch.setenv("HF_ENDPOINT", f"{hub}/mirror")
    assert [check.status for check in HubCheck().results()] == ["ok"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (offline,) = HubCheck().results()
    assert offline.text.startswith("not asked")


def test_the_answers_of_torch_about_devices_become_lines() -> None:
    gpu = {"name": "cuda:0 H200", "free": 9 * 10**9, "total": 10**10, "works": True, "bf16": True}
    (good,) = doctor._check_devices([gpu], has_cuda=True)
    assert good == Check("ok", "device", "cuda:0 H200, 9.0 of 10.0 GB free, bf16 and fp16")
    (wrong,) = doctor._check_devices([gpu | {"works": False}], has_cuda=True)
    (error,) = doctor._check_devices({"error": "RuntimeError: CUDA driver"}, has_cuda=True)
    assert (wrong.status, error.status) == ("problem", "problem")
    assert "CUDA driver" in error.text


def test_lines_fit_a_terminal_of_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    doctor._print(open_console("rich"), Check("note", "hub", "words of a sentence " * 12, "Connect"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 80
    assert all(line.startswith(" " * 24) for line in lines[1:])


def test_a_check_that_fails_itself_is_a_problem() -> None:
    def homeless() -> Iterator[Check]:
        yield Check("ok", "first", "works")
        raise RuntimeError("Could not determine home directory.\nmore")

    first, second = doctor._safely("cache", homeless)
    assert first.status == "ok"
    assert second.text == "cannot be checked (RuntimeError: Could not determine home directory.)"


@pytest.mark.slow
def test_the_training_is_killed_resumed_and_equal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor"]) == 0
    assert "killed and resumed: the same" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_slow_training_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended:
        kill = communicate = staticmethod(lambda: None)

    def start(folder: Path, name: str, *overrides: str) -> Any:
        checkpoint = folder / name / "checkpoints" / "step-00000200"
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "state.json").write_text("{}", encoding="utf-8")
        return Ended()

    monkeypatch.setattr(doctor, "_start_training", start)
    monkeypatch.setattr(doctor, "_kill_at_checkpoint", lambda process, checkpoints: True)
    monkeypatch.setattr(doctor, "_wait", lambda process: "")
    assert doctor._check_training().status == "ok"
    monkeypatch.setattr(doctor, "_SLOW_SECONDS", 0.0)
    check = doctor._check_training()
    assert (check.status, "killed and resumed: the same 0.0 MB" in check.text) == ("note", True)
    assert "see with top what else is running" in check.remedy


@pytest.mark.slow
def test_a_resumed_training_that_differs_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    start = doctor._start_training

    def start_differently(folder: Path, name: str, *overrides: str) -> Any:
        if name == "killed" and not overrides:
            overrides = (*doctor._TRAINING, "run.dir=killed", "seed=1")
        return start(folder, name, *overrides)

    monkeypatch.setattr(doctor, "_start_training", start_differently)
    check = doctor._check_training()
    assert check.status == "problem"
    assert "it differs in" in check.text
    assert "model.safetensors" in check.text
