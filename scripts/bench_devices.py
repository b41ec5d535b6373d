"""Throughput, communication and memory of one and of several devices, on the same job.

    python scripts/bench_devices.py [--devices 2 4] [--engines] [--rounds 5] [--steps 60] [--output result.json]
        [key=value ...]

Without `--devices`: every power of two up to the number of GPUs, else 2. On a CPU, N processes have one thread each and
are compared with one process of N threads, and with one of a single thread. The configurations take turns in each
round; medians over the rounds are printed. Run it on an idle machine: the load at the start is stored.

The time in communication includes the time that a process waits for a slower one. With shards it is not measured,
because the exchange happens inside the forward and the backward pass. Small exchanges are those of counts and flags, at
most 4 kB.

With `--engines`, the sum of all gradients after the backward pass is compared with torch's `DistributedDataParallel`
and `replicate`, which exchange gradients during the backward pass. Leave `train.accumulate` at 1: both would exchange
the gradients of each micro-batch. `DistributedDataParallel` computes the mean instead of the sum, at the same cost.
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
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).parent.parent
WARM_UP = 5
SMALL_BYTES = 4096


@dataclass(frozen=True)
class Setting:
    """A way to run the job."""

    devices: int
    threads: int
    shard: bool = False
    engine: str = "sum"

    @property
    def name(self) -> str:
        """The label in the table."""
        shards = ", in shards" if self.shard else ""
        engine = "" if self.engine == "sum" else f", {self.engine}"
        return f"{self.devices} x {self.threads} thread{'' if self.threads == 1 else 's'}{shards}{engine}"


class Silent:
    """A report that ignores all events."""

    def log(self, event: str, *, step: int, epoch: float, values: Any) -> None:
        """Ignore the event."""


def work(steps: int, overrides: list[str], engine: str, *, shard: bool) -> None:
    """Train in this process, one of several or the only one; the first one prints its figures as JSON."""
    from trainer.builders.training import build_training, join_devices
    from trainer.config.compose import compose, plain, register_defaults
    from trainer.config.stored import config_text, job_from_config
    from trainer.distributed.ranks import Ranks
    from trainer.loop import fit
    from trainer.run import RunOutputs, StepCounts

    size = int(os.environ["WORLD_SIZE"])
    register_defaults()
    if engine == "replicate":
        replicate_instead_of_shards()
    line = [*overrides, f"devices={size}", f"shard={str(shard or engine == 'replicate').lower()}"]
    values, _ = plain(compose(ROOT / "conf", "train", line)[0])
    job = job_from_config(values)
    ranks = join_devices(job, None) if size > 1 else Ranks()
    seconds, small_seconds = count_seconds()
    stamps, waited = [], []

    def record() -> bool:
        stamps.append(time.perf_counter())
        waited.append((seconds[0], small_seconds[0]))
        return False

    with ExitStack() as closing:
        training = build_training(job, config_text(values), RunOutputs(Silent()), None, closing, ranks)
        counts = StepCounts(WARM_UP + steps, training.run.steps.per_epoch, None, None, None)
        run = replace(training.run, steps=counts)
        if engine == "DDP":
            run = replace(run, model=torch.nn.parallel.DistributedDataParallel(run.model))
            sum_gradients = ranks.sum_gradients
            ranks.sum_gradients = lambda _, loss: sum_gradients([], loss)  # type: ignore[method-assign]
        fit(run, training.state, record)
        samples = sum(len(training.run.loader.plan.batch(step).ids) for step in range(WARM_UP, WARM_UP + steps))
    total = stamps[-1] - stamps[WARM_UP - 1]
    communication, small = (
        (after - before) / total for before, after in zip(waited[WARM_UP - 1], waited[-1], strict=True)
    )
    on_gpu = run.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peaks = ranks.gather(peak)
    if ranks.is_first:
        figures = {
            "samples_per_second": samples / total,
            "communication": None if shard or engine != "sum" else communication,
            "small": small,
            "step_ms": 1000 * statistics.median(after - before for before, after in pairwise(stamps[WARM_UP - 1 :])),
            "peak_bytes": max(peaks),
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        }
        print(json.dumps(figures), flush=True)
    ranks.close()


def replicate_instead_of_shards() -> None:
    """Make `shard=true` store complete weights on each device, with torch's `replicate`."""
    from torch.distributed import fsdp
    from torch.distributed._composable.replicate_with_fsdp import replicate

    fsdp.fully_shard = lambda module, mesh, reshard_after_forward: replicate(module, mesh=mesh)  # type: ignore[assignment]


def count_seconds() -> tuple[list[float], list[float]]:
    """Return lists whose only entry grows by the seconds that the process spends in exchanges, and in small ones."""
    seconds, small_seconds = [0.0], [0.0]

    def timed(exchange: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            tensor = arguments[-1]
            is_small = tensor.numel() * tensor.element_size() <= SMALL_BYTES

            def run(function: Any) -> Any:
                if tensor.is_cuda:
                    torch.cuda.synchronize()
                started = time.perf_counter()
                result = function()
                if tensor.is_cuda:
                    torch.cuda.synchronize()
                spent = time.perf_counter() - started
                seconds[0] += spent
                small_seconds[0] += spent * is_small
                return result

            pending = run(lambda: exchange(*arguments, **options))
            return None if pending is None else SimpleNamespace(wait=lambda: run(pending.wait))

        return call

    dist.all_reduce = timed(dist.all_reduce)
    dist.all_gather = timed(dist.all_gather)
    return seconds, small_seconds


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
    command = [sys.executable, __file__, "--worker", setting.engine, "--steps", str(steps)]
    command += ["--shard"] if setting.shard else []
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


def settings(devices: list[int], *, engines: bool) -> Iterator[Setting]:
    """Yield the ways to run the job."""
    on_gpu = torch.cuda.is_available()
    yield Setting(1, 1)
    for count in devices:
        if not on_gpu:
            yield Setting(1, count)
        yield Setting(count, 1)
        yield Setting(count, 1, shard=True)
        for engine in ("DDP", "replicate") if engines else ():
            yield Setting(count, 1, engine=engine)


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
    parser.add_argument("--engines", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--shard", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    if options.worker:
        work(options.steps, options.overrides, options.worker, shard=options.shard)
        return
    gpus = torch.cuda.device_count()
    devices = options.devices or [2**power for power in range(1, max(2, gpus).bit_length()) if 2**power <= max(2, gpus)]
    load = os.getloadavg()[0]
    found: dict[Setting, list[dict[str, Any]]] = {setting: [] for setting in settings(devices, engines=options.engines)}
    for _ in range(options.rounds):
        for setting, figures in found.items():
            figures.append(measure(setting, options.steps, options.overrides))
    rows = []
    for setting, figures in found.items():
        keys = ("samples_per_second", "step_ms", "communication", "small", "peak_bytes")
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
    for row in rows:
        print(f"{row['name']}: {row['step_ms']:.1f} ms a step, {100 * row['small']:.1f}% of it in small exchanges")
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
