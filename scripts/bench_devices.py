"""Throughput, communication and memory of one and of several devices, on the same job.

    python scripts/bench_devices.py [--devices 2 4] [--rounds 5] [--steps 60] [--output result.json] [key=value ...]

Without `--devices`: every power of two up to the number of GPUs, else 2. On a CPU, N processes have one thread each and
are compared with one process of N threads, and with one of a single thread. The configurations take turns in each
round; medians over the rounds are printed. Run it on an idle machine: the load at the start is stored.

The time in communication includes the time that a process waits for a slower one. With shards it is not measured,
because the exchange happens inside the forward and the backward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
WARM_UP = 5
TIMED = ("sum", "sum_gradients", "average_batch_norm", "gather_rows")


@dataclass(frozen=True)
class Setting:
    """A way to run the job."""

    devices: int
    threads: int
    shard: bool = False

    @property
    def name(self) -> str:
        """The label in the table."""
        shards = ", in shards" if self.shard else ""
        return f"{self.devices} x {self.threads} thread{'' if self.threads == 1 else 's'}{shards}"


class Silent:
    """A report that ignores all events."""

    def log(self, event: str, *, step: int, epoch: float, values: Any) -> None:
        """Ignore the event."""


def work(steps: int, overrides: list[str], *, shard: bool) -> None:
    """Train in this process, one of several or the only one; the first one prints its figures as JSON."""
    from trainer.builders.training import build_training, join_devices
    from trainer.config.compose import compose, plain, register_defaults
    from trainer.config.stored import config_text, job_from_config
    from trainer.loop import set_learning_rate, update_weights
    from trainer.ranks import Ranks
    from trainer.run import RunOutputs

    size = int(os.environ["WORLD_SIZE"])
    register_defaults()
    line = [*overrides, f"devices={size}", f"shard={str(shard).lower()}"]
    values, _ = plain(compose(ROOT / "conf", "train", line)[0])
    job = job_from_config(values)
    ranks = join_devices(job, None) if size > 1 else Ranks()
    spent = count_seconds(ranks)
    with ExitStack() as closing:
        run = build_training(job, config_text(values), RunOutputs(Silent()), None, closing, ranks).run
        run.model.train()
        stamps, waited, samples = [], [], 0
        for step, batches in enumerate(run.loader.steps(0, WARM_UP + steps)):
            set_learning_rate(run.optimizer, run.schedule(step))
            update_weights(run, step, batches)  # its last line waits for the device
            if run.ema is not None:
                run.ema.update(run.model, run.loss)
            stamps.append(time.perf_counter())
            waited.append(spent[0])
            samples += sum(batch.num_samples for batch in batches) if step >= WARM_UP else 0
    seconds = [after - before for before, after in pairwise(stamps[WARM_UP - 1 :])]
    on_gpu = run.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (all_samples,) = ranks.sum(samples)
    peaks = ranks.gather(peak)
    if ranks.is_first:
        figures = {
            "samples_per_second": all_samples / sum(seconds),
            "communication": None if shard else (waited[-1] - waited[WARM_UP - 1]) / sum(seconds),
            "peak_bytes": max(peaks),
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        }
        print(json.dumps(figures), flush=True)
    ranks.close()


def count_seconds(ranks: Any) -> list[float]:
    """Return a list whose only entry grows by the seconds that the process spends in exchanges."""
    spent = [0.0]

    def timed(method: Any) -> Any:
        def call(*arguments: Any) -> Any:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = time.perf_counter()
            result = method(*arguments)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            spent[0] += time.perf_counter() - started
            return result

        return call

    for name in TIMED:
        setattr(ranks, name, timed(getattr(ranks, name)))
    return spent


def measure(setting: Setting, steps: int, overrides: list[str]) -> dict[str, Any]:
    """Run the job in new processes; return the figures of the first one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {
        **os.environ,
        "OMP_NUM_THREADS": str(setting.threads),
        "WORLD_SIZE": str(setting.devices),
        "LOCAL_WORLD_SIZE": str(setting.devices),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}),
    }
    command = [sys.executable, __file__, "--worker", "--steps", str(steps), *(["--shard"] if setting.shard else [])]
    processes = [
        subprocess.Popen(
            [*command, *overrides],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(setting.devices)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{setting.name}: a process failed")
    figures: dict[str, Any] = json.loads(outputs[0].splitlines()[-1])
    return figures


def settings(devices: list[int]) -> Iterator[Setting]:
    """Yield the ways to run the job."""
    on_gpu = torch.cuda.is_available()
    yield Setting(1, 1)
    for count in devices:
        if not on_gpu:
            yield Setting(1, count)
        yield Setting(count, 1)
        yield Setting(count, 1, shard=True)


def table(result: dict[str, Any]) -> str:
    """Return the result as a Markdown table."""
    lines = ["| processes x threads | samples/s | of one thread | communication | peak memory of a process |"]
    lines.append("| --- | --- | --- | --- | --- |")
    base = result["settings"][0]["samples_per_second"]
    for each in result["settings"]:
        share = "" if each["communication"] is None or each["devices"] == 1 else f"{100 * each['communication']:.0f}%"
        rate, memory = each["samples_per_second"], each["peak_bytes"] / 1e6
        lines.append(f"| {each['name']} | {rate:.0f} | {rate / base:.2f} | {share} | {memory:.0f} MB |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--shard", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    if options.worker:
        work(options.steps, options.overrides, shard=options.shard)
        return
    gpus = torch.cuda.device_count()
    devices = options.devices or [2**power for power in range(1, max(2, gpus).bit_length()) if 2**power <= max(2, gpus)]
    load = os.getloadavg()[0]
    found: dict[Setting, list[dict[str, Any]]] = {setting: [] for setting in settings(devices)}
    for _ in range(options.rounds):
        for setting, figures in found.items():
            figures.append(measure(setting, options.steps, options.overrides))
    rows = []
    for setting, figures in found.items():
        keys = ("samples_per_second", "communication", "peak_bytes")
        values = {key: [each[key] for each in figures] for key in keys}
        medians = {key: None if None in each else statistics.median(each) for key, each in values.items()}
        rows.append({"name": setting.name, **asdict(setting), **medians, "rounds": values["samples_per_second"]})
    result = {
        "settings": rows,
        "device": next(iter(found.values()))[0]["device"],
        "cores": os.cpu_count(),
        "load_at_start": load,
        "torch": torch.__version__,
        "overrides": options.overrides,
        "steps": options.steps,
    }
    print(table(result))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
