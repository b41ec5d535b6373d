"""A process that is killed at any moment while it replaces a folder leaves the old one or the new one, whole."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.files.atomic_io import _exchange, remove_leftovers, replaced_folder

ROOT = Path(__file__).parents[2]
REPLACE = """
import errno, os, signal, sys
from pathlib import Path
from trainer.files import atomic_io

target, at, two_steps = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "two steps"
calls = 0

def killed(operation):
    def run(*arguments):
        global calls
        for step in ("before", "after"):
            calls += 1
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)
            if step == "before":
                operation(*arguments)
    return run

def unsupported(first, second):
    raise OSError(errno.EINVAL, "not on this file system")

os.rename = killed(os.rename)
atomic_io._exchange = unsupported if two_steps else killed(atomic_io._exchange)
with atomic_io.replaced_folder(target) as stage:
    for name in "ab":
        (stage / name).write_text("new")
"""


def contents(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.iterdir())]


@pytest.mark.parametrize(("way", "moments"), [("one step", 2), ("two steps", 6)])
def test_a_killed_replacement_leaves_a_whole_folder(way: str, moments: int, tmp_path: Path) -> None:
    if way == "one step":
        for name in "xy":
            (tmp_path / name).mkdir()
        try:
            _exchange(tmp_path / "x", tmp_path / "y")
        except OSError as error:
            pytest.skip(f"this file system cannot exchange folders: {error}")  # then only two steps are used
        for name in "xy":
            (tmp_path / name).rmdir()
    target = tmp_path / "model"
    outcomes = []
    for at in range(1, moments + 2):
        with replaced_folder(target) as stage:
            for name in "ab":
                (stage / name).write_text("old")
        done = subprocess.run([sys.executable, "-c", REPLACE, target, str(at), way], cwd=ROOT, check=False)
        assert done.returncode == (-signal.SIGKILL if at <= moments else 0)
        assert way == "two steps" or target.is_dir(), "the exchange has a gap"
        remove_leftovers(tmp_path)
        outcomes.append(contents(target))
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert all(outcome in (["old"] * 2, ["new"] * 2) for outcome in outcomes)
    assert (outcomes[0], outcomes[-1]) == (["old"] * 2, ["new"] * 2)
    if way == "two steps":  # between the two renames, only the old folder was complete under a name
        assert outcomes[1] == outcomes[2] == ["old"] * 2
