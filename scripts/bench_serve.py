"""Compare `trainer serve` with ONNX Runtime itself on the same rows and threads.

    python scripts/bench_serve.py [--run RUN] [--rounds 5] [--output scripts/results/serve.json]

Without `--run`, a small default text classifier is trained first. `runtime` answers in this process as the server does
(tokenizer, model, answers), without HTTP. Clients are threads with a connection each, which send a request when the
last one is answered. Rounds of all variants are interleaved; throughput is the median over the rounds, latencies are
those of all rounds. Clients and server share the cores of the machine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from trainer.cli import main as trainer
from trainer.serve.model import ServedModel

HEADERS = {"Content-Type": "application/json"}
SMALL = ("debug=smoke", "device=cpu", "logger.console=none", "export.formats=[onnx]")


def start_server(folder: Path, threads: int) -> tuple[subprocess.Popen[str], int]:
    """Start a server; return it and its port."""
    arguments = ["serve", f"run={folder}", "port=0", f"threads={threads}", "max_waiting=100000"]
    script = "import sys; from trainer.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "http://" in line:
            return process, int(line.partition("http://")[2].split()[0].rpartition(":")[2])
    sys.exit("bench_serve: the server did not start")


def measure_server(port: int, rows: list[Any], size: int, clients: int, seconds: float) -> tuple[float, list[float]]:
    """Return rows per second, and the duration of each request."""
    bodies = [json.dumps({"rows": rows[start : start + size]}) for start in range(0, len(rows) - size + 1, size)]
    end = time.perf_counter() + seconds

    def client(number: int) -> list[float]:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        durations = []
        while (began := time.perf_counter()) < end:
            connection.request("POST", "/predict", bodies[(number + len(durations)) % len(bodies)], HEADERS)
            response = connection.getresponse()
            content = response.read()
            assert response.status == 200, content
            durations.append(time.perf_counter() - began)
        connection.close()
        return durations

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        durations = [each for part in pool.map(client, range(clients)) for each in part]
    return size * len(durations) / (time.perf_counter() - began), durations


def measure_runtime(model: ServedModel, rows: list[Any], size: int, seconds: float) -> tuple[float, list[float]]:
    """Return rows per second, and the duration of each batch, without a server."""
    batches = [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)]
    durations: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() < began + seconds:
        start = time.perf_counter()
        model.answer([model.parse(row) for row in batches[len(durations) % len(batches)]], 1)
        durations.append(time.perf_counter() - start)
    return size * len(durations) / (time.perf_counter() - began), durations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="run folder with an ONNX artifact")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--threads", type=int, default=1, help="threads of the model")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        run = options.run or Path(made) / "run"
        if options.run is None and trainer(["train", *SMALL, f"run.dir={run}"]) != 0:
            sys.exit("bench_serve: the training failed")
        folder = run / "export"
        model = ServedModel(folder, threads=options.threads)
        golden = json.loads((folder / "golden.json").read_text("utf-8"))["rows"]
        rows = [golden[number % len(golden)] for number in range(256)]
        process, port = start_server(folder, options.threads)
        seconds = options.seconds
        variants: dict[str, Callable[[], tuple[float, list[float]]]] = {}
        for size in (1, 32):
            variants[f"runtime, {size} rows"] = lambda size=size: measure_runtime(model, rows, size, seconds)  # type: ignore[misc]
            for clients in (1, 8, 32):
                variants[f"server, {size} rows, {clients} clients"] = (  # type: ignore[misc]
                    lambda size=size, clients=clients: measure_server(port, rows, size, clients, seconds)
                )
        speeds: dict[str, list[float]] = {name: [] for name in variants}
        durations: dict[str, list[float]] = {name: [] for name in variants}
        try:
            for _ in range(options.rounds):
                for name, measure in variants.items():
                    speed, took = measure()
                    speeds[name].append(speed)
                    durations[name] += took
        finally:
            os.kill(process.pid, signal.SIGTERM)
            process.communicate()
    table = {}
    for name in variants:
        percent = quantiles(durations[name], n=100)
        base = median(speeds[f"runtime, {name.split(', ')[1]}"])
        table[name] = {
            "rows_per_second": median(speeds[name]),
            "of_runtime": median(speeds[name]) / base,
            "p50_ms": 1000 * percent[49],
            "p99_ms": 1000 * percent[98],
        }
        values = table[name]
        print(
            f"{name:30} {values['rows_per_second']:9.0f} rows/s  {values['of_runtime']:5.2f} of the runtime  "
            f"p50 {values['p50_ms']:7.2f} ms  p99 {values['p99_ms']:7.2f} ms"
        )
    if options.output:
        result = {
            "threads": options.threads,
            "cores": os.cpu_count(),
            "machine": platform.processor(),
            "variants": table,
        }
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
