"""The fuzzer finds no traceback, no death, no hang and no leak; and it notices them."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def fuzz(*options: str) -> str:
    command = [sys.executable, str(REPOSITORY / "scripts/fuzz.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("cases", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_command_lines(cases: int) -> None:
    assert f"{cases} cases" in fuzz("--cases", str(cases), "--seed", "50000", "--only", "command")


@pytest.mark.slow
def test_ten_thousand_cases() -> None:
    assert "10000 cases" in fuzz("--cases", "10000", "--seed", "100000")


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (0, "fine", "exit 0"),
        (2 << 8, "a: wrong", "exit 2"),
        (1 << 8, "Traceback (most recent call last):", "traceback"),
        (0, "Exception in thread\nTraceback (most recent call last):", "traceback"),
        (1 << 8, "a: wrong", "undocumented exit code 1"),
        (3 << 8, " \n", "no message, exit code 3"),
        (signal.SIGSEGV, "", "death by SIGSEGV"),
        (signal.SIGALRM, "", "hang"),
        (signal.SIGXCPU, "", "hang"),
        (2 << 8, "a: \x1b[31m", "control characters"),
        (2 << 8, "a: \u202e", "control characters"),
        (2 << 8, "got 'hunter2'", "secret shown"),
    ],
)
def test_verdicts(status: int, output: str, expected: str) -> None:
    from scripts.fuzz import verdict

    assert verdict(status, output) == expected
