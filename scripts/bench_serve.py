"""Compare `trainer serve` with calling ONNX Runtime itself, on the same rows and threads.

    python scripts/bench_serve.py [--rounds 5] [--output scripts/results/serve.json]

A small text classifier and a table classifier are trained first. Loops in this process do what a script of one's own
would do, without HTTP, and with the same code that encodes rows and makes answers:

* `runtime`: a batch is encoded, ONNX Runtime is called, and the answers are made. Rows of similar length are computed
  together, as the server does, so texts are padded alike.
* `runtime, JSON`: the same from the bytes of a request to those of a response, parsed and checked as the server does.
* `runtime, padded`: without the grouping by length.
* `runtime columns`, for tables: a batch is an array for each column, which is how a script that is fast has it.
* `runtime columns, JSON`: from the bytes of a request in columns to those of a response.

`server columns` are requests in columns. All ratios are to `runtime`, the loop over rows.

`empty` is `GET /health` on the same server: the cost of HTTP itself in uvicorn, which is the least that any request
costs. So `HTTP + JSON` is the bound of a server of one core: the time of an empty request and of the loop `JSON`
together. What the server takes beyond it is its own.

Install the extra first: `pip install 'trainer[serve]'` brings httptools, uvloop and msgspec, which the result names.

Clients are threads with a connection each, which send a request when the last one is answered. Rounds of all variants
are interleaved; rates are medians over the rounds, ratios are medians of the ratios within a round, latencies are those
of all rounds. `CPU` is the server's processor time for a row, divided by the loop's. Clients and server share the
cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from sklearn.datasets import load_breast_cancer

from trainer.cli import main as trainer
from trainer.data.stdlib import docstrings
from trainer.export.bundle.predict import Predictor
from trainer.serve.body import format_answer, parse_body
from trainer.serve.columns import Columns, to_columns
from trainer.serve.model import ServedModel

SMALL = ("debug=smoke", "device=cpu", "logger.console=none", "export.formats=[onnx]")
SIZES, CLIENTS = (1, 32, 256), (1, 8, 32)
NUM_ROWS = 256


class Turn(NamedTuple):
    """Rows per second, processor seconds of a row, and the durations of all requests in one measurement."""

    speed: float
    cpu: float
    durations: list[float]


@contextmanager
def server(run: Path, threads: int) -> Iterator[tuple[int, int]]:
    """Start a server; yield its process id and its port."""
    arguments = ["serve", f"run={run}", "port=0", f"threads={threads}", "max_waiting=100000", "timeout=300"]
    script = "import sys; from trainer.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    address = next((line.partition("http://")[2].split()[0] for line in process.stderr if "http://" in line), None)
    if address is None:
        sys.exit("bench_serve: the server did not start")
    try:
        yield process.pid, int(address.rpartition(":")[2])
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.communicate()


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bodies(batches: list[Any], form: str) -> list[bytes]:
    """Return the bodies of requests in rows or columns."""
    return [json.dumps({form: batch}).encode() for batch in batches]


def predictions(batches: list[Any], form: str) -> list[bytes]:
    """Return requests in rows or columns."""
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return [head % len(body) + body for body in bodies(batches, form)]


def in_columns(rows: list[Any]) -> dict[str, list[Any]]:
    """Return rows in columns."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def measure_server(pid: int, port: int, requests: list[bytes], size: int, clients: int, seconds: float) -> Turn:
    """Measure requests of `size` rows. The client does little, because it shares the cores with the server."""
    end = time.perf_counter() + seconds

    def client(number: int) -> list[float]:
        durations = []
        with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rb") as answers:
            while (began := time.perf_counter()) < end:
                connection.sendall(requests[(number + len(durations)) % len(requests)])
                status = answers.readline()
                headers = dict(line.lower().split(b":", 1) for line in iter(answers.readline, b"\r\n"))
                content = answers.read(int(headers[b"content-length"]))
                assert b" 200 " in status, content
                durations.append(time.perf_counter() - began)
        return durations

    cpu, began = cpu_seconds(pid), time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        durations = [each for part in pool.map(client, range(clients)) for each in part]
    count = size * len(durations)
    return Turn(count / (time.perf_counter() - began), (cpu_seconds(pid) - cpu) / count, durations)


def measure_loop(answer: Callable[[Any], object], batches: list[Any], size: int, seconds: float) -> Turn:
    """Measure a function of batches of `size` rows in this process."""
    durations: list[float] = []
    cpu, began = time.process_time(), time.perf_counter()
    while time.perf_counter() < began + seconds:
        start = time.perf_counter()
        answer(batches[len(durations) % len(batches)])
        durations.append(time.perf_counter() - start)
    count = size * len(durations)
    return Turn(count / (time.perf_counter() - began), (time.process_time() - cpu) / count, durations)


def text_rows() -> list[Any]:
    """Return docstrings, as the default job reads them."""
    return [{"text": each.text} for each in islice(docstrings(), 0, 20 * NUM_ROWS, 20)]


def table_rows() -> list[Any]:
    """Return rows of 30 numbers."""
    table = load_breast_cancer()
    return [dict(zip(table.feature_names, row.tolist(), strict=True)) for row in table.data[:NUM_ROWS]]


JOBS: dict[str, tuple[tuple[str, ...], Callable[[], list[Any]]]] = {
    "texts": ((), text_rows),
    "tables": (("experiment=breast_cancer",), table_rows),
}


def measure(job: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a job by variant."""
    arguments, make_rows = JOBS[job]
    if trainer(["train", *arguments, *SMALL, f"run.dir={folder}"]) != 0:
        sys.exit("bench_serve: the training failed")
    rows = make_rows()
    model = ServedModel(folder / "export", threads=options.threads)
    predictor = Predictor(model.file, folder=model.folder, threads=options.threads)

    def grouped(batch: list[Any]) -> list[Any]:
        return model.answer([dict(row) for row in batch], 1)

    def padded(batch: list[Any]) -> list[Any]:
        return predictor.predict([dict(row) for row in batch])

    def columnar(batch: Columns) -> dict[str, list[Any]]:
        return to_columns(model.answer(batch, 1))

    def from_json(body: bytes) -> bytes:
        rows, top = parse_body(body, NUM_ROWS)
        if isinstance(rows, Columns):
            return format_answer({"answers": to_columns(model.answer(rows, top))})
        return format_answer({"answers": model.answer([model.parse(row) for row in rows], top)})

    turns: dict[str, list[Turn]] = {}
    with server(folder, options.threads) as (pid, port):
        variants: dict[str, Callable[[], Turn]] = {}

        def add(form: str, size: int, loop: Callable[[Any], object], batches: list[Any], documents: list[Any]) -> None:
            suffix = "" if form == "rows" else f" {form}"
            for name, function, inputs in (("", loop, batches), (", JSON", from_json, bodies(documents, form))):
                call = partial(measure_loop, function, inputs, size, options.seconds)
                variants[f"runtime{suffix}, {size} rows{name}"] = call
            for clients in CLIENTS:
                requests = predictions(documents, form)
                call = partial(measure_server, pid, port, requests, size, clients, options.seconds)
                variants[f"server{suffix}, {size} rows, {clients} clients"] = call

        for size in SIZES:
            batches = [rows[start : start + size] for start in range(0, NUM_ROWS, size)]
            add("rows", size, grouped, batches, batches)
            variants[f"runtime, {size} rows, padded"] = partial(measure_loop, padded, batches, size, options.seconds)
            if job == "tables":
                documents = [in_columns(batch) for batch in batches]
                arrays = [Columns({name: np.array(cells) for name, cells in each.items()}, size) for each in documents]
                add("columns", size, columnar, arrays, documents)
        empty = [b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"]
        for clients in CLIENTS:
            call = partial(measure_server, pid, port, empty, 1, clients, options.seconds)
            variants[f"empty, 1 rows, {clients} clients"] = call
        for _ in range(options.rounds):
            for name, variant in variants.items():
                turns.setdefault(name, []).append(variant())
    return {name: summarize(own, turns[f"runtime, {size_of(name)}"], bound(name, turns)) for name, own in turns.items()}


def size_of(name: str) -> str:
    """Return the part of a variant's name that says how many rows a request has."""
    return name.split(", ")[1]


def bound(name: str, turns: dict[str, list[Turn]]) -> list[float] | None:
    """Return in each round the rows per second of HTTP and JSON without a server's own work; None for a loop."""
    variant, _, clients = name.partition(", ")[0], *name.rpartition(", ")[1:]
    if not variant.startswith("server"):
        return None
    size = int(size_of(name).split()[0])
    loop = variant.replace("server", "runtime")
    pairs = zip(turns[f"empty, 1 rows, {clients}"], turns[f"{loop}, {size_of(name)}, JSON"], strict=True)
    return [size / (1 / empty.speed + size / own.speed) for empty, own in pairs]


def summarize(turns: list[Turn], runtime: list[Turn], bounds: list[float] | None) -> dict[str, float]:
    percent = quantiles([each for turn in turns for each in turn.durations], n=100)
    pairs = list(zip(turns, runtime, strict=True))
    return {
        "rows_per_second": median(turn.speed for turn in turns),
        "of_runtime": median(turn.speed / other.speed for turn, other in pairs),
        "cpu_of_runtime": median(turn.cpu / other.cpu for turn, other in pairs),
        **({"of_bound": median(t.speed / b for t, b in zip(turns, bounds, strict=True))} if bounds else {}),
        "p50_ms": 1000 * percent[49],
        "p99_ms": 1000 * percent[98],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--threads", type=int, default=1, help="threads of the model")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/serve.json")
    options = parser.parse_args()
    tables = {}
    with tempfile.TemporaryDirectory() as made, redirect_stdout(sys.stderr):
        for job in JOBS:
            tables[job] = measure(job, Path(made) / job, options)
    for job, table in tables.items():
        for name, values in table.items():
            share = f", {values['of_bound']:5.2f} of HTTP + JSON" if "of_bound" in values else ""
            print(
                f"{job}: {name:34} {values['rows_per_second']:8.0f} rows/s, {values['of_runtime']:5.2f} of the runtime"
                f"{share}, CPU {values['cpu_of_runtime']:5.2f}, p50 {values['p50_ms']:7.2f} ms"
                f", p99 {values['p99_ms']:7.2f} ms"
            )
    result = {
        "threads": options.threads,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "onnxruntime": onnxruntime.__version__,
        "packages": [name for name in ("uvloop", "httptools", "msgspec") if find_spec(name)],
        "jobs": tables,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
