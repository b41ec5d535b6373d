"""Resuming late in an epoch compared with resuming early: from a stored checkpoint to the first update after it.

    python scripts/bench_resume.py [--rounds 9] [--output result.json] [key=value ...]

Every round resumes the default job at 10% and at 90% of its first epoch, in turn; medians are compared.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from trainer.builders.training import build_training
from trainer.checkpoint.snapshot import Snapshot
from trainer.checkpoint.store import Store
from trainer.config.compose import compose, plain, register_defaults
from trainer.config.jobs import TrainJob
from trainer.config.stored import config_text, job_from_config
from trainer.loop import save_checkpoint, update_weights
from trainer.run import RunOutputs

CONF = Path(__file__).parent.parent / "conf"
TARGET = 1.1


class Silent:
    """A report that ignores all events."""

    def log(self, event: str, *, step: int, epoch: float, values: Any) -> None:
        """Ignore the event."""


def checkpoints(job: TrainJob, text: str, folder: Path) -> dict[str, int]:
    """Save a checkpoint at 10% and one at 90% of the first epoch; return their steps."""
    with ExitStack() as closing:
        saved: list[Snapshot] = []
        outputs = RunOutputs(Silent(), save=saved.append)
        built = build_training(job, text, outputs, None, closing)
        steps = {share: int(built.run.steps.per_epoch * float(share[:-1]) / 100) for share in ("10%", "90%")}
        # One update gives the optimizer its state; the position in the data is only the step.
        update_weights(built.run, 0, next(built.run.loader.steps(0, 1)))
        store = Store(folder, keep=2)
        for step in steps.values():
            built.state.step = step
            save_checkpoint(built.run, built.state)
            store.save(saved[-1])
    return steps


def resume(job: TrainJob, text: str, folder: Path, step: int) -> float:
    """Return the seconds from loading the checkpoint to the end of the first update."""
    started = time.perf_counter()
    with ExitStack() as closing:
        snapshot = Store(folder, keep=2).load(f"step-{step}")
        built = build_training(job, text, RunOutputs(Silent()), snapshot, closing)
        update_weights(built.run, step, next(built.run.loader.steps(step, step + 1)))
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    register_defaults()
    values, _ = plain(compose(CONF, "train", options.overrides)[0])
    job, text = job_from_config(values), config_text(values)
    with tempfile.TemporaryDirectory() as folder:
        steps = checkpoints(job, text, Path(folder))
        seconds: dict[str, list[float]] = {share: [] for share in steps}
        for round_number in range(options.rounds + 1):
            for share, step in steps.items():
                taken = resume(job, text, Path(folder), step)
                if round_number:
                    seconds[share].append(taken)
    medians = {share: statistics.median(found) for share, found in seconds.items()}
    ratio = medians["90%"] / medians["10%"]
    for share, median in medians.items():
        print(f"resuming at {share} of an epoch (step {steps[share]}): {1000 * median:7.1f} ms to the first update")
    print(f"90% / 10%: {ratio:.2f}   target <= {TARGET}: {'met' if ratio <= TARGET else 'MISSED'}")
    if options.output:
        machine = platform.processor() or platform.machine()
        result = {
            "medians": medians,
            "ratio": ratio,
            "seconds": seconds,
            "torch": torch.__version__,
            "machine": machine,
        }
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
