"""Compare the default job, as a whole process, with a script that uses transformers' Trainer (`peer_transformers.py`).

    python scripts/bench_peers.py [--rounds 5] [--epochs 3] [--threads N] [--smoke] [--output result.json]

Both train an encoder of the same size from scratch on the same texts with the same tokenizer, batch size, steps,
learning rate, weight decay and clipping, without averaged weights. Both evaluate and save once per epoch, score the
test split with their best weights, and save the model. This tool also looks for problems in the data, writes and proves
two artifacts, and writes the report; `without artifacts` leaves the artifacts out, as the peer has none. This tool uses
packed rows, the peer pads each batch to its longest text; each uses its defaults otherwise.

`first step` is the time from the command to the end of the first training step. Both have encoded the data before.

The commands run in turn, so a slow moment of the machine affects all of them. Times are medians in seconds; CPU time is
user and system time, and only it is comparable on a machine that does other work as well. --smoke runs everything once
on few texts. The peer needs the package accelerate.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_startup import measure

from trainer.data.stdlib_docs import StdlibDocs

PEER = Path(__file__).with_name("peer_transformers.py")
OURS, BARE, THEIRS = "trainer", "trainer, without artifacts", "transformers' Trainer"


@dataclass
class Measured:
    """The measurements of one command: wall and CPU seconds of each process, and its accuracies on two splits."""

    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)

    def add_time(self, wall: float, processor: float) -> None:
        """Add the times of a process."""
        self.seconds.append(wall)
        self.processor_seconds.append(processor)


def write_data(folder: Path, tokenizer: Path) -> None:
    """Write the default job's splits and its tokenizer for the peer."""
    for split, rows in StdlibDocs().load(["text", "label"]).items():
        lines = (json.dumps({"text": row["text"], "label": row["label"]}) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())


def our_command(run: Path, options: argparse.Namespace, *overrides: str) -> list[str]:
    """Return the arguments of Python for the default job without averaged weights."""
    limit = [] if options.limit is None else [f"loader.limit={options.limit}"]
    job = [f"run.dir={run}", f"train.duration={options.epochs}ep", "ema.decay=null", "device=cpu", *limit]
    return ["-m", "trainer", "train", *job, *overrides]


def peer_command(data: Path, output: Path, options: argparse.Namespace, *arguments: str) -> list[str]:
    """Return the arguments of Python for the peer."""
    limit = [] if options.limit is None else ["--limit", str(options.limit)]
    return [str(PEER), str(data), str(output), "--epochs", str(options.epochs), *limit, *arguments]


def our_accuracies(run: Path) -> tuple[float, float]:
    """Return the best validation accuracy and the test accuracy in the events of a run."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    scores: dict[str, list[float]] = {"validation": [], "test": []}
    for event in events:
        if event["event"] == "eval":
            scores[event["split"]].append(event["accuracy"])
    return max(scores["validation"]), scores["test"][-1]


def peer_accuracies(output: Path) -> tuple[float, float]:
    """Return the best validation accuracy and the test accuracy that the peer has stored."""
    scores = json.loads((output / "scores.json").read_text(encoding="utf-8"))
    return scores["validation"], scores["test"]


def time_first_step(arguments: list[str], marker: str, folder: Path) -> tuple[float, float]:
    """Return the wall and CPU time until a process prints a line that contains `marker`; then end the process."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-u", *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if marker in line:
                wall = time.perf_counter() - start
                # The two fields after the name, which may contain spaces: utime and stime, in ticks.
                fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
                process.kill()
                return wall, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    sys.exit(f"{' '.join(arguments)}: ended without printing {marker!r}")


def measure_jobs(folder: Path, data: Path, options: argparse.Namespace) -> dict[str, Measured]:
    """Run the jobs in turn."""
    measured = {name: Measured() for name in (OURS, BARE, THEIRS)}
    for number in range(options.rounds):
        for name, result in measured.items():
            output = folder / f"{number}-{len(name)}"
            if name == THEIRS:
                arguments, accuracies = peer_command(data, output, options), peer_accuracies
            else:
                arguments = our_command(output, options, *(["export.formats=[]"] if name == BARE else []))
                accuracies = our_accuracies
            result.add_time(*measure(sys.executable, arguments, folder, check=True))
            validation, test = accuracies(output)
            result.validation.append(validation)
            result.test.append(test)
            print(f"{name:<28} {result.seconds[-1]:7.1f} s  {result.processor_seconds[-1]:7.1f} s CPU  ", end="")
            print(f"accuracy: validation {validation:.3f}, test {test:.3f}", flush=True)
    return measured


def measure_first_steps(folder: Path, data: Path, options: argparse.Namespace) -> dict[str, Measured]:
    """Run the jobs until their first step, in turn."""
    measured = {name: Measured() for name in (OURS, THEIRS)}
    for number in range(options.rounds):
        run, output = folder / f"first-{number}", folder / f"first-peer-{number}"
        ours = our_command(run, options, "train.log_every=1", "logger.console=plain")
        measured[OURS].add_time(*time_first_step(ours, "grad_norm", folder))
        theirs = peer_command(data, output, options, "--log-every", "1")
        measured[THEIRS].add_time(*time_first_step(theirs, "grad_norm", folder))
    return measured


def summarize(measured: dict[str, Measured]) -> dict[str, Any]:
    """Return the measurements with the medians of each round's ratios to the peer."""
    ratios: dict[str, dict[str, float]] = {}
    for name, result in measured.items():
        if name != THEIRS:
            ratios[name] = {
                key: median(a / b for a, b in zip(getattr(result, key), getattr(measured[THEIRS], key), strict=True))
                for key in ("seconds", "processor_seconds")
            }
    return {"ratios": ratios, "runs": {name: vars(result) for name, result in measured.items()}}


def table(result: dict[str, Any]) -> str:
    """Return the measurements as a table in Markdown."""
    lines = [
        "| job | wall | CPU | validation | test | wall / Trainer | CPU / Trainer |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key, title in (("whole", "whole job"), ("first_step", "first step")):
        for name, run in result[key]["runs"].items():
            times = [f"{median(run[each]):.1f} s" for each in ("seconds", "processor_seconds")]
            scores = [f"{median(run[each]):.3f}" if run[each] else "" for each in ("validation", "test")]
            ratios = [f"{ratio:.2f}" for ratio in result[key]["ratios"].get(name, {}).values()] or ["1", "1"]
            lines.append(f"| {title}, {name} | {' | '.join([*times, *scores, *ratios])} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table and write the result as JSON to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, help="threads of each process; all cores without it")
    parser.add_argument("--smoke", action="store_true", help="run everything once on few texts")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    if find_spec("accelerate") is None:
        sys.exit("bench_peers: transformers' Trainer needs accelerate. pip install accelerate")
    options.limit = 64 if options.smoke else None
    if options.smoke:
        options.rounds, options.epochs = 1, 1
    if options.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Both start with a cache of their own, which the runs before the measurement fill.
        os.environ["TRAINER_CACHE"] = str(folder / "cache")
        (data := folder / "data").mkdir()
        prepared = our_command(folder / "prepared", options, "train.duration=1")
        measure(sys.executable, prepared, folder, check=True)
        write_data(data, folder / "prepared" / "export" / "tokenizer.json")
        time_first_step(peer_command(data, folder / "peer", options, "--log-every", "1"), "grad_norm", folder)
        result = {
            "whole": summarize(measure_jobs(folder, data, options)),
            "first_step": summarize(measure_first_steps(folder, data, options)),
            "epochs": options.epochs,
            "rounds": options.rounds,
            "threads": options.threads or os.cpu_count(),
            "torch": torch.__version__,
            "transformers": __import__("transformers").__version__,
            "python": platform.python_version(),
            "machine": platform.processor() or platform.machine(),
        }
    print(f"\n{table(result)}")
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
