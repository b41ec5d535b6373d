"""Walk the first hour of a new user: run the commands of the pages, in their order, each page in an empty folder.

    python scripts/first_hour.py            # README.md and docs/start.md; the wheel is installed in a new environment
    python scripts/first_hour.py --quick    # the same, with trainings of 20 steps
    python scripts/first_hour.py --short    # the first command of each verb of docs/start.md, in this environment

The only file is `my.csv`. The walk ends at the first surprise: an exit code other than 0, or a traceback. `make`
commands need the clone and are left out. Prints the seconds of each command, and until the first model was trained.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/start.md")
WORDS = {
    "fruit": ["apple", "banana", "cherry", "orange", "lemon", "pear", "plum", "grape"],
    "animal": ["badger", "otter", "lynx", "heron", "goat", "wren", "toad", "mole"],
    "tool": ["hammer", "wrench", "saw", "drill", "chisel", "pliers", "spade", "axe"],
}
OTHERS = ["and", "the", "that", "we", "saw", "on", "a", "table", "near", "old", "house", "with", "some", "for", "you"]


def write_data(path: Path, num_rows: int = 1_200) -> None:
    """Write a CSV file with the columns `content` and `category`."""
    random = Random(0)
    rows = []
    for _ in range(num_rows):
        category = random.choice(list(WORDS))
        words = random.choices(WORDS[category], k=3) + random.choices(OTHERS, k=9)
        rows.append(f"{' '.join(random.sample(words, len(words)))},{category}\n")
    path.write_text(f"content,category\n{''.join(rows)}", encoding="utf-8")


def commands_of(text: str) -> list[str]:
    """Return the command lines of the `sh` blocks of a page, except for the clone."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if not line.startswith("make ")]


def shortened(commands: Sequence[str]) -> list[str]:
    """Return the first command of each verb, with trainings of a few steps; a verb is a program's first word."""
    first: dict[str, str] = {}
    for command in commands:
        program, verb, *_ = command.split()
        if verb != "doctor":  # it trains and resumes for itself
            first.setdefault(verb if program == "trainer" else command, command)
    return [quickened(each, " debug=smoke device=cpu") for each in first.values()]


def quickened(command: str, keys: str = " train.duration=20 loader.limit=200") -> str:
    """Return a command with a shorter training, unless it resumes one or says itself how long it takes."""
    is_training = command.startswith("trainer train ")
    has_length = any(key in command for key in ("resume=", "train.duration=", "debug="))
    return f"{command}{keys}" if is_training and not has_length else command


def walk(commands: Sequence[str], folder: Path, environment: Mapping[str, str]) -> float:
    """Run commands in a folder, and return the seconds until the first training has ended.

    Raises:
        SystemExit: A command fails.
    """
    start = time.perf_counter()
    until_trained = 0.0
    for command in commands:
        before = time.perf_counter()
        # Without an input, as a question would be a surprise.
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(["sh", "-c", command], cwd=folder, env=environment, text=True, check=False, **pipes)
        print(f"{time.perf_counter() - before:7.1f} s  {command}", flush=True)
        if done.returncode or "Traceback (most recent call last)" in done.stdout:
            raise SystemExit(f"{command}: exit code {done.returncode}\n{done.stdout}")
        if command.startswith("trainer train ") and not until_trained:
            until_trained = time.perf_counter() - start
    return until_trained


def install(folder: Path, *, shares_packages: bool) -> Path:
    """Build the wheel, install it in an environment of its own, and return the folder of its programs.

    Args:
        folder: An empty folder.
        shares_packages: Use the dependencies of this environment instead of downloading them.
    """
    isolation = ["--no-isolation"] if shares_packages else []
    built = [sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", str(folder), str(ROOT)]
    subprocess.run(built, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    programs = folder / "venv" / "bin"
    options = ["--constraint", str(ROOT / "constraints.txt")]
    if shares_packages:
        (packages,) = folder.glob("venv/lib/python*/site-packages")
        entries = dict.fromkeys(
            [sysconfig.get_path("purelib"), *(each for each in sys.path if "site-packages" in each)]
        )
        (packages / "shared.pth").write_text("\n".join(entries), encoding="utf-8")
        options = ["--no-deps"]
    subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", *options, str(wheel)], check=True)
    return programs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", default=PAGES, help="pages, relative to the repository")
    parser.add_argument("--quick", action="store_true", help="trainings of 20 steps on 200 samples")
    parser.add_argument("--short", action="store_true", help="the first command of each verb of docs/start.md, shorter")
    parser.add_argument("--shared", action="store_true", help="share the dependencies of this environment")
    options = parser.parse_args()
    pages = ("docs/start.md",) if options.short else options.pages
    with TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "wheel").mkdir()
        is_installed = options.short
        programs = (
            Path(sys.executable).parent if is_installed else install(folder / "wheel", shares_packages=options.shared)
        )
        hidden = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
        for number, page in enumerate(pages):
            here = folder / f"page-{number}"
            here.mkdir()
            write_data(here / "my.csv")
            commands = commands_of((ROOT / page).read_text(encoding="utf-8"))
            if options.short:
                commands = shortened(commands)
            elif options.quick:
                commands = [quickened(each) for each in commands]
            print(page, flush=True)
            seconds = walk(commands, here, environment)
            print(f"{seconds:7.1f} s  until the first model was trained")


if __name__ == "__main__":
    main()
