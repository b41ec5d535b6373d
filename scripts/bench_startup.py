"""How long `trainer --help` and a config error take beside `import torch`, as medians of interleaved runs.

    python scripts/bench_startup.py [repetitions]

Prints wall and CPU time in seconds, and their ratios to those of `python -c "import torch"`.
"""

import os
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "import torch": ["-c", "import torch"],
    "trainer --help": ["-m", "trainer", "--help"],
    "trainer train --help": ["-m", "trainer", "train", "--help"],
    "trainer train lss=focal": ["-m", "trainer", "train", "lss=focal"],
    "trainer train lss=focal optimizer.lrr=1 +loss.gama=2": [
        *("-m", "trainer", "train", "lss=focal", "optimizer.lrr=1", "+loss.gama=2"),
    ],
}


def measure(arguments: list[str]) -> tuple[float, float]:
    """Wall and CPU time of a Python process, in seconds."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=False, capture_output=True)
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, cpu


def main() -> None:
    """Prints the table."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(repetitions):
        for name, arguments in COMMANDS.items():
            measured[name].append(measure(arguments))
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in measured.items()
    }
    torch_wall, torch_cpu = medians["import torch"]
    print(f"{'':<53} {'wall':>6} {'cpu':>6} {'wall ratio':>11} {'cpu ratio':>10}")
    for name, (wall, cpu) in medians.items():
        print(f"{name:<53} {wall:6.3f} {cpu:6.3f} {wall / torch_wall:11.3f} {cpu / torch_cpu:10.3f}")


if __name__ == "__main__":
    main()
