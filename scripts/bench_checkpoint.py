"""The time of a verified checkpoint compared with `torch.save`, and the time that a background save costs training.

Every round runs each variant once, in turn, so that a slow moment of the machine affects all; medians are compared.
All variants keep the last two checkpoints and delete the one before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from trainer.checkpoint.saver import Saver
from trainer.checkpoint.snapshot import Snapshot
from trainer.checkpoint.store import Store

_SIDE = 1024
_WARMUP = 2
_RATIO = 1.0
_STALL = 0.35


def main() -> None:
    """Measure, print a table, and write the results as JSON to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=240, help="total size of model, EMA and AdamW moments")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="on the device to measure; a temporary folder by default")
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        seconds = measure(Path(folder), state(arguments.megabytes), arguments.rounds)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        "verified save / torch.save": (median["verified save"] / median["torch.save + fsync"], _RATIO),
        "stall / blocking save": (median["background save, stall"] / median["verified save"], _STALL),
    }
    for name, value in median.items():
        print(f"{name:28}{1000 * value:9.1f} ms   {1000 * min(seconds[name]):9.1f} to {1000 * max(seconds[name]):.1f}")
    for name, (value, target) in ratios.items():
        print(f"{name:28}{value:9.2f}      target <= {target}: {'met' if value <= target else 'MISSED'}")
    if arguments.output:
        result = {
            "megabytes": arguments.megabytes,
            "rounds": arguments.rounds,
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "median_seconds": median,
            "seconds": seconds,
            "ratios": {name: {"value": value, "target": target} for name, (value, target) in ratios.items()},
        }
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def state(megabytes: int) -> dict[str, dict[str, Tensor]]:
    """Return a model, its EMA and two moments of about this total size."""
    layers = max(1, megabytes * 2**20 // (4 * 4 * _SIDE * _SIDE))

    def random_weights(suffix: str) -> dict[str, Tensor]:
        return {f"layers.{index}.weight{suffix}": torch.randn(_SIDE, _SIDE) for index in range(layers)}

    return {
        "model": random_weights(""),
        "ema": random_weights(""),
        "optimizer": random_weights("/exp_avg") | random_weights("/exp_avg_sq"),
    }


def measure(folder: Path, tensors: dict[str, dict[str, Tensor]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each variant in each round, after two warmup rounds."""
    store, background = Store(folder / "blocking", keep=2), Store(folder / "background", keep=2)
    saver = Saver(background)
    documents = {"state.json": "{}"}

    def plain(step: int) -> None:
        path = folder / f"{step}.pt"
        torch.save({**tensors, "documents": documents}, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        (folder / f"{step - 2}.pt").unlink(missing_ok=True)

    ways: dict[str, Callable[[int], object]] = {
        "torch.save + fsync": plain,
        "verified save": lambda step: store.save(Snapshot(step, tensors, documents)),
        "background save, stall": lambda step: saver.submit(Snapshot(step, tensors, documents)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(rounds + _WARMUP):
        for name, way in ways.items():
            os.sync()
            start = time.perf_counter()
            way(step)
            if step >= _WARMUP:
                seconds[name].append(time.perf_counter() - start)
        while step not in background.list():
            time.sleep(0.01)
    saver.close()
    return seconds


if __name__ == "__main__":
    main()
