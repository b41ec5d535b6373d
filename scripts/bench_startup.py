"""Measure how long `trainer --help`, a config error and a checked plan take, next to `import torch`.

    python scripts/bench_startup.py [repetitions] [--against PATH]

Prints the median wall and CPU time in seconds of interleaved runs, and their ratios to `python -c "import torch"`. With
`--against`, the same commands also run in another checkout, which has its own `.venv`, and the ratio to its CPU time is
printed. CPU time is user and system time; only it is comparable on a machine that does other work as well.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

COMMANDS = {
    "import torch": ["-c", "import torch"],
    "trainer --help": ["-m", "trainer", "--help"],
    "trainer train --help": ["-m", "trainer", "train", "--help"],
    "trainer train lss=focal": ["-m", "trainer", "train", "lss=focal"],
    "trainer train lss=focal optimizer.lrr=1 +loss.gama=2": [
        *("-m", "trainer", "train", "lss=focal", "optimizer.lrr=1", "+loss.gama=2"),
    ],
    "trainer plan --cfg job": ["-m", "trainer", "plan", "--cfg", "job"],
}


def measure(python: str, arguments: list[str], folder: Path, *, check: bool = False) -> tuple[float, float]:
    """Return the wall and CPU time of a Python process, in seconds; with `check`, exit if it fails."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([python, *arguments], cwd=folder, check=False, capture_output=True, text=True)
    if check and done.returncode:
        sys.exit(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stderr}")
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("repetitions", nargs="?", type=int, default=15)
    parser.add_argument("--against", type=Path, help="another checkout, with its own .venv")
    options = parser.parse_args()
    checkouts = {"": (sys.executable, ROOT)}
    if options.against:
        other = options.against.resolve()
        checkouts["other"] = (str(other / ".venv" / "bin" / "python"), other)
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(options.repetitions):
        for name, arguments in COMMANDS.items():
            for checkout, (python, folder) in checkouts.items():
                times.setdefault((checkout, name), []).append(measure(python, arguments, folder))
    medians = {key: [statistics.median(column) for column in zip(*rows, strict=True)] for key, rows in times.items()}
    torch_wall, torch_cpu = medians["", "import torch"]
    compared = f" {'other cpu':>10} {'cpu ratio':>10}" if options.against else ""
    print(f"{'':<53} {'wall':>6} {'cpu':>6} {'wall/torch':>11} {'cpu/torch':>10}{compared}")
    for name in COMMANDS:
        wall, cpu = medians["", name]
        line = f"{name:<53} {wall:6.3f} {cpu:6.3f} {wall / torch_wall:11.3f} {cpu / torch_cpu:10.3f}"
        if options.against:
            _, other_cpu = medians["other", name]
            line += f" {other_cpu:10.3f} {cpu / other_cpu:10.3f}"
        print(line)


if __name__ == "__main__":
    main()
