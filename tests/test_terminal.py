"""`trainer train` in a pseudo-terminal: its progress is clean at every width, and the terminal is sane afterwards."""

import codecs
import fcntl
import io
import os
import re
import select
import signal
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.jobs import TINY, working_in, write_data
from tests.support.processes import PATIENCE, start
from tests.support.terminal import Terminal
from trainer.cli import main


class PseudoTerminal:
    """A terminal that a process writes to.

    Attributes:
        path: The device.
        written: What was written to it.
    """

    def __init__(self, width: int) -> None:
        self._screen, self._device = os.openpty()
        self.path = Path(os.ttyname(self._device))
        self.terminal = Terminal(width)
        self.written = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._set_size(width)
        self._wants: list[tuple[str, Callable[[], None]]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def when(self, text: str, act: Callable[[], None]) -> None:
        """Call `act` once, after the text was written."""
        self._wants.append((text, act))

    def resize(self, width: int, process: int) -> None:
        """Change the width while the process is stopped and everything that it has written is on the screen."""
        os.kill(process, signal.SIGSTOP)
        while Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)
        while select.select([self._screen], [], [], 0)[0]:
            self._show()
        self._set_size(width)
        self.terminal.resize(width)
        os.kill(process, signal.SIGCONT)

    def close(self) -> list[str]:
        """Wait for what is still to be read; return the rows of the screen."""
        os.close(self._device)
        self._reader.join()
        os.close(self._screen)
        return self.terminal.lines()

    def _set_size(self, width: int) -> None:
        fcntl.ioctl(self._device, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))

    def _read(self) -> None:
        with suppress(OSError):  # nobody has it open any more
            while True:
                self._show()
                for want in [want for want in self._wants if want[0] in self.written[-10_000:]]:
                    self._wants.remove(want)
                    want[1]()

    def _show(self) -> None:
        text = self._decoder.decode(os.read(self._screen, 1 << 12))
        self.written += text
        self.terminal.write(text)


def run(
    folder: Path,
    width: int,
    *arguments: str,
    environment: dict[str, str] | None = None,
    events: tuple[tuple[str, Callable[[PseudoTerminal, int], None]], ...] = (),
) -> tuple[int | None, PseudoTerminal, list[str]]:
    """Run `trainer ARGUMENTS` in a pseudo-terminal; return the exit code, the terminal and its rows.

    Args:
        folder: The working directory.
        width: Columns.
        arguments: The verb and its keys; `train` trains a tiny model.
        environment: Further variables.
        events: Texts, and what happens when they are written, given the terminal and the process.
    """
    screen = PseudoTerminal(width)
    with working_in(folder):
        if arguments[0] == "train":
            job = [*TINY, *write_data(folder), "run.dir=run", "logger.console=auto", "train.log_every=2"]
            arguments = ("train", *job, *arguments[1:])
        # Python's readline, which pytest imports, sets the size for all processes that it starts.
        variables = {"TERM": "xterm-256color", "COLUMNS": "", "LINES": "", **(environment or {})}
        process = start([*arguments], screen.path, variables)
        for text, act in events:
            screen.when(text, lambda act=act: act(screen, process.pid or 0))  # type: ignore[misc]
        process.join(PATIENCE)
    return process.exitcode, screen, screen.close()


def test_a_whole_run_on_80_columns(tmp_path: Path) -> None:
    code, screen, rows = run(tmp_path, 80, "train", "train.duration=3ep", "export.formats=[torchscript]")
    assert code == 0, screen.written
    assert not screen.terminal.has_broken_lines
    assert screen.terminal.cursor_shown
    for phase in (
        "encoding the train rows",
        "evaluating",
        "scoring the best weights: evaluating",
        "writing model.torchscript.pt",
        "proving on the evaluation split: evaluating",
        "measuring the latency",
    ):
        assert phase in screen.written
        assert not any(phase in row for row in rows)
    begin = [row.split()[0] for row in rows[:4]]
    assert begin == ["run", "data", "model", "steps"]
    assert rows[4].split() == ["step", "epoch", "weights", "loss", "accuracy", "macro_f1"]
    table = [row.lstrip("* ").split() for row in rows[5:11]]
    assert [row[:3] for row in table] == [[f"{8 * n}", f"{n}.00", name] for n in (1, 2, 3) for name in ("raw", "ema")]
    assert re.match(r"trained 24 steps in \d:\d\d:\d\d", rows[11])
    assert "best accuracy" in rows[11]
    assert not any("eta" in row for row in rows)
    for verb, phase in (("eval", "evaluating"), ("export", "proving model.torchscript.pt")):
        code, screen, rows = run(tmp_path, 80, verb, "run=run")
        assert code == 0, screen.written
        assert phase in screen.written
        assert not any(phase in row for row in rows)
        assert not screen.terminal.has_broken_lines


def test_a_terminal_that_is_resized_and_interrupted(tmp_path: Path) -> None:
    code, screen, rows = run(
        tmp_path,
        140,
        "train",
        "train.duration=4000st",
        "train.eval_every=20",
        environment={"NO_COLOR": "1"},
        events=(
            ("best accuracy", lambda screen, process: screen.resize(80, process)),
            ("  7.50 ", lambda screen, process: screen.resize(50, process)),
            (" 12.50 ", lambda _, process: os.kill(process, signal.SIGINT)),
        ),
    )
    assert code == 75, screen.written
    assert screen.terminal.cursor_shown
    assert "\x1b[3" not in screen.written  # no colors
    assert "Stopping after this step; press again to stop without saving" in "".join(rows)
    bars = [row for row in rows if "/4000" in row]
    assert len(bars) <= 3, "\n".join(rows)  # a resize or a message in the middle of a drawing leaves its lines
    assert any(row.startswith("Resume with: trainer train") for row in rows)


@pytest.mark.parametrize("terminal", ["none", "dumb"])
def test_plain_lines_elsewhere(tmp_path: Path, terminal: str) -> None:
    if terminal == "none":
        with working_in(tmp_path):
            arguments = ["train", *TINY, *write_data(tmp_path), "logger.console=auto", "train.duration=2ep"]
            process = start(arguments, tmp_path / "output", {"TERM": "xterm-256color"})
            process.join(PATIENCE)
        code, written = process.exitcode, (tmp_path / "output").read_text()
    else:
        code, screen, _ = run(tmp_path, 80, "train", "train.duration=2ep", environment={"TERM": "dumb"})
        written = screen.written.replace("\r\n", "\n")
    assert code == 0, written
    assert not {"\x1b", "\r", "━"} & {*written}
    lines = written.splitlines()
    assert lines[:2] == ["preparing the data", "preparing the data: reading the data"]
    assert any(line.startswith("train       10/16  epoch   1.25  loss") for line in lines)
    assert any(line.startswith("checkpoint   8/16  epoch   1.00  best by accuracy") for line in lines)


@pytest.mark.parametrize("width", [60, pytest.param(80, marks=pytest.mark.slow)])
def test_tables_break_no_number_and_fit(width: int, tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = {
        "eval": ["eval", "run=sweeps/a/loss-focal_seed-0", "device=cpu", "slices=[label]", "metrics=[auroc,mcc]"],
        "diff": ["diff", "sweeps/a/loss-focal_seed-0", "sweeps/a/loss-poly_seed-1"],
        "sweeps": ["diff", "sweeps/a", "sweeps/a"],
        "sweep": ["train", "-m", *JOB, "loss=focal,poly", "seed=0,1", "sweep.name=a"],
        "plan": ["plan", *JOB, "device=cpu"],
    }
    with working_in(tables):
        for name, command in commands.items():
            plain = io.StringIO()
            monkeypatch.setattr(sys, "stdout", plain)
            assert main(command) == 0
            screen, rows = run_here(command, width, monkeypatch)
            assert any(row.startswith("│") for row in rows), name
            assert not screen.terminal.has_broken_lines, (name, rows)
            assert numbers(plain.getvalue().splitlines()) <= numbers(rows), name
            assert ("loading PyTorch" in screen.written) == (name in ("eval", "plan")), (
                "nobody looks at an empty screen"
            )

        screen, rows = run_here(["predict", "run=sweeps/a/loss-focal_seed-0", "input=w1 w2"], width, monkeypatch)
        assert "loading the model" in screen.written
        assert rows[0].startswith('{"label": ')


def run_here(command: list[str], width: int, monkeypatch: pytest.MonkeyPatch) -> tuple[PseudoTerminal, list[str]]:
    """Run a command in this process on a terminal; return the terminal and its rows."""
    screen = PseudoTerminal(width)
    with screen.path.open("w", encoding="utf-8") as device, monkeypatch.context() as context:
        context.setattr(sys, "stdout", device)
        for key, value in {"TERM": "xterm-256color", "COLUMNS": str(width), "NO_COLOR": "1"}.items():
            context.setenv(key, value)
        assert main(command) == 0
    return screen, screen.close()


JOB = [*TINY, "data=files", *(f"data.{split}={split}.csv" for split in ("train", "validation", "test"))]
JOB += ["train.duration=4", "export.formats=[]", "device=cpu"]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of a sweep."""
    folder = tmp_path_factory.mktemp("tables")
    with working_in(folder):
        write_data(folder)
        assert main(["train", "-m", *JOB, "loss=focal,poly", "seed=0,1", "sweep.name=a"]) == 0
    return folder


def numbers(lines: list[str]) -> set[str]:
    """Return the numbers in the rows of tables, as they are written."""
    return {word for line in lines if line.startswith(("  ", "│")) for word in re.findall(r"[-+]?\d+\.\d+\S*", line)}
