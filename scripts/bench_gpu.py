"""Every figure of training on a GPU, unattended and in under 9 minutes.

    python scripts/bench_gpu.py [--rows NAME ...] [--output scripts/results/gpu.json]

A row is one figure: the same job with one key changed, or this tool next to transformers' Trainer and a hand-written
loop. Each row runs in a process of its own with a time limit; if a row fails, its error is recorded and the others go
on. The results are written after every row and printed as a table. All models have random weights, and all data is
synthetic, so nothing is downloaded.

It needs the packages of pyproject.toml and, for Trainer, accelerate. On a machine without a network, install the
missing ones from a folder of wheels: pip install --no-index --find-links FOLDER hydra-core datasets accelerate ...
The script lists the packages that are missing. The tool itself is read from this checkout.

`--device cpu --size tiny` runs every row with tiny models, to test the script; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parent.parent
sys.path.extend(folder for folder in (str(ROOT), str(ROOT / "scripts")) if folder not in sys.path)

from bench_gpu_jobs import ROWS, SIZES, Row, Size, Texts, jobs_of, write_inputs  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.builders.training import Training
    from trainer.config.jobs import TrainJob

SECONDS = 530
"""No row starts or runs later than this many seconds after the start."""


class Events:
    """A report that keeps the values of the training events."""

    def __init__(self) -> None:
        self.values: list[Mapping[str, Any]] = []

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        """Keep the values of a training event."""
        if event == "train":
            self.values.append(values)


def read_job(words: Sequence[str]) -> TrainJob:
    from trainer.config.compose import compose, plain, register_defaults
    from trainer.config.stored import job_from_config

    register_defaults()
    config, _ = compose(ROOT / "conf", "train", list(words))
    return job_from_config(plain(config)[0])


def build(job: TrainJob, closing: ExitStack) -> tuple[Training, Callable[[int, int], list[Mapping[str, Any]]]]:
    """Build a run, and a function that trains rounds of so many further steps and returns the values of each round."""
    from trainer.builders.training import build_training
    from trainer.loop import fit
    from trainer.run import RunOutputs

    report = Events()
    built = build_training(job, "", RunOutputs(report), None, closing)

    def train(steps: int, rounds: int) -> list[Mapping[str, Any]]:
        total, before = built.state.step + steps * rounds, len(report.values)
        log_every = total if rounds == 1 else steps
        counts = replace(built.run.steps, total=total, log_every=log_every, eval_every=None, save_every=None)
        fit(replace(built.run, steps=counts), built.state, lambda: False)
        return report.values[before:]

    return built, train


def measure(words: Sequence[str], size: Size) -> dict[str, float]:
    """Return the figures of one variant of a job, from the events of the run: medians of all rounds but the first."""
    job = read_job(words)
    with ExitStack() as closing:
        started = time.perf_counter()
        built, train = build(job, closing)
        build_seconds = time.perf_counter() - started
        first, *rounds = train(size.steps, 1 + size.rounds)
        accumulate = built.run.loader.accumulate
    names = [name for name in ("tokens_per_second", "samples_per_second", "mfu") if name in first]
    figures = {name: median(values[name] for values in rounds) for name in names}
    samples = job.train.batch_size
    return figures | {
        "milliseconds": 1000 * samples / figures["samples_per_second"],
        "memory": max(values["memory"] for values in rounds),
        "accumulate": accumulate,
        "build_seconds": build_seconds,
        "first_round_seconds": size.steps * samples / first["samples_per_second"],
    }


def release() -> None:
    """Free what the last variant has left on the device."""
    import torch

    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def change(words: Sequence[str], changes: Sequence[str], texts: Texts | None, device: str) -> list[str]:
    """Return the words of a command line with some of them replaced."""
    keys = {change.partition("=")[0] for change in changes}
    kept = [word for word in words if word.partition("=")[0] not in keys]
    values = {"tokens": texts.tokens if texts else None, "graphs": "graphs" if device == "cuda" else "true"}
    return [*kept, *(change.format(**values) for change in changes)]


Figures = dict[str, Any]
"""Numbers by name, or an `error`."""


def attempt(function: Callable[[], Any]) -> Any:
    """Return the result of a function, or its error as figures."""
    try:
        return function()
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def measure_variants(row: Row, folder: Path, size: Size, device: str) -> Iterator[tuple[str, Figures]]:
    """Yield the figures of each variant."""
    words = jobs_of(folder, size, device)[row.job]
    for name, changes in row.variants.items():
        words_of_variant = change(words, changes, size.texts(row.job), device)
        words_of_variant.append(f"loader.workers={min(size.workers, os.cpu_count() or 1)}")
        yield name, attempt(partial(measure, words_of_variant, size))
        release()


def compare_loops(row: Row, folder: Path, size: Size, device: str) -> Iterator[tuple[str, Figures]]:
    """Train one classifier in turn with this tool, with transformers' Trainer and with a hand-written loop.

    None of them is restricted to deterministic operations. Trainer and the hand-written loop pad each batch.
    """
    import torch
    from bench_finetune import theirs
    from transformers import AutoConfig, AutoModel

    model = folder / "weights"
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.from_pretrained(folder / "encoder")).save_pretrained(model)
    (model / "tokenizer.json").write_bytes((folder / "encoder" / "tokenizer.json").read_bytes())
    words = [word for word in jobs_of(folder, size, device)["classes"] if not word.startswith("model.")]
    words += [f"model.path={model}", "deterministic=false"]
    job = read_job(words)
    steps, samples = size.steps + 2, job.train.batch_size  # Trainer's first two steps are not measured
    loops: dict[str, Callable[[], float]] = {}
    with ExitStack() as closing:
        for name, changes in row.variants.items():
            _, train = build(read_job(change(words, changes, size.classes, device)), closing)
            failed = attempt(partial(train, size.steps, 1))
            if isinstance(failed, dict):
                yield f"trainer, {name}", failed
            else:
                loops[f"trainer, {name}"] = lambda train=train: train(steps, 1)[0]["samples_per_second"]  # type: ignore[misc]
        built, _ = build(job, closing)
        loops["transformers"] = lambda: steps * samples / theirs(job, built, model, steps)[1][0]
        hand_written = write_by_hand(job, built, model)
        hand_written(size.steps)
        loops["hand-written"] = lambda: steps * samples / hand_written(steps)
        rates: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(size.rounds):
            for name, loop in loops.items():
                rates[name].append(loop())
    baseline = median(rates["transformers"])
    for name, values in rates.items():
        yield name, {"samples_per_second": median(values), "times_transformers": median(values) / baseline}


def write_by_hand(job: TrainJob, built: Training, model: Path) -> Callable[[int], float]:
    """Return a function that trains so many steps as a careful user writes the loop, and returns the seconds."""
    import torch
    from bench_finetune import MeanPooled
    from torch.nn.utils.rnn import pad_sequence
    from torch.utils.data import DataLoader

    columns = built.encoded.splits["train"]
    rows = list(zip(map(torch.tensor, columns["input_ids"]), columns["label"], strict=True))
    device = built.run.device
    network = MeanPooled(model, built.task.info().num_outputs or 1).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=job.optimizer["lr"], weight_decay=0.01, fused=True)

    def collate(samples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
        ids = pad_sequence([each for each, _ in samples], batch_first=True)
        mask = pad_sequence([torch.ones_like(each) for each, _ in samples], batch_first=True)
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([label for _, label in samples])}

    def batches() -> Iterator[dict[str, Tensor]]:
        options: dict[str, Any] = {"shuffle": True, "collate_fn": collate, "pin_memory": device.type == "cuda"}
        while True:
            yield from DataLoader(rows, job.train.batch_size, **options)  # type: ignore[arg-type]

    stream = batches()

    def train(steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in next(stream).items()}
            with torch.autocast(device.type, dtype=torch.bfloat16):
                loss = network(**batch)["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        loss.item()  # waits for the device
        return time.perf_counter() - started

    return train


def run_row(name: str, folder: Path, options: argparse.Namespace, save: Callable[[Figures], None]) -> None:
    """Measure a row; save its figures by variant after each of them, with its seconds and the device."""
    import torch

    row, started = ROWS[name], time.perf_counter()
    if row.memory is not None and options.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, row.memory / total))
    measure_row = compare_loops if name == "classification" else measure_variants
    result: dict[str, Any] = {"name": name, "device": describe_device(options.device), "figures": {}}

    def measure_and_save() -> dict[str, str]:
        for variant, figures in measure_row(row, folder, SIZES[options.size], options.device):
            result["figures"][variant] = figures
            save({**result, "seconds": time.perf_counter() - started})
        return {}

    # Compiling takes longer than everything else, so the test of this script leaves it out.
    with torch.compiler.set_stance("force_eager" if options.size == "tiny" else "default"):
        save({**result, **attempt(measure_and_save), "seconds": time.perf_counter() - started})


def describe_device(device: str) -> dict[str, Any]:
    import torch

    if device != "cuda" or not torch.cuda.is_available():
        return {"name": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    facts = torch.cuda.get_device_properties(0)
    return {
        "name": facts.name,
        "memory": facts.total_memory,
        "capability": f"{facts.major}.{facts.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cores": os.cpu_count(),
    }


def run_alone(name: str, folder: Path, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Run a row in a process of its own, which is killed after `seconds`: it may leave the device unusable."""
    output, words = folder / f"{name}.json", ["--device", options.device, "--size", options.size, "--in-process"]
    command = [sys.executable, __file__, *words, "--rows", name, "--inputs", str(folder), "--output", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        code = process.wait(seconds)
        failed = {"error": f"the process ended with exit code {code}"} if code else {}
    except subprocess.TimeoutExpired:
        failed = {"error": f"took longer than {seconds:.0f} s", "seconds": seconds}
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the processes that compile, too
        process.wait()
    if not output.exists():
        return {"name": name, **failed}
    written = json.loads(output.read_text(encoding="utf-8"))
    return {**written["rows"][0], "device": written["device"], **failed}


def atomic_write(path: Path, text: str) -> None:
    """Write a file so that a process that is killed leaves the old one."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def missing_packages() -> list[str]:
    """Return the packages that are needed and not installed, as pip takes them."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    missing = []
    for requirement in [*needed, "accelerate"]:
        try:
            version(re.split(r"[<>=\[]", requirement)[0])
        except PackageNotFoundError:
            missing.append(requirement)
    return missing


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the speed."""
    found = {"python": platform.python_version()}
    for name in ("torch", "triton", "transformers", "accelerate", "datasets"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)  # type: ignore[no-untyped-call]
    return found


def table(result: Mapping[str, Any]) -> str:
    """Return the results as a Markdown table."""
    units = {
        "tokens_per_second": "tokens/s",
        "samples_per_second": "samples/s",
        "milliseconds": "ms per step",
        "mfu": "MFU",
        "memory": "memory, GB",
        "times_transformers": "x Trainer",
    }
    lines = [" | ".join(["| row", "variant", *units.values()]) + " |", "| --- " * (len(units) + 2) + "|"]
    for row in result["rows"]:
        if "error" in row:
            lines.append(f"| `{row['name']}` | failed: {row['error'].splitlines()[0]} |" + " |" * len(units))
        for variant, figures in row.get("figures", {}).items():
            cells = [show(name, figures.get(name)) for name in units]
            if "error" in figures:
                cells[0] = f"failed: {figures['error'].splitlines()[0]}"
            lines.append(" | ".join([f"| `{row['name']}`", variant, *cells]) + " |")
    return "\n".join(lines)


def show(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name == "memory":
        return f"{value / 1e9:.2f}"
    return f"{value:.3f}" if name == "mfu" else f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--size", default="full", choices=SIZES)
    parser.add_argument("--in-process", action="store_true", help="run all rows in this process, without time limits")
    parser.add_argument("--inputs", type=Path, help="folder with the inputs; they are written there if it is empty")
    parser.add_argument("--output", type=Path, help="default: scripts/results/gpu.json on CUDA, else none")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    started, options = time.perf_counter(), parse(arguments)
    if missing := missing_packages():
        command = "pip install " + " ".join(f"'{package}'" for package in missing)
        sys.exit(f"bench_gpu: packages are missing. {command} (without a network: --no-index --find-links FOLDER)")
    if options.device == "cuda":
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # Trainer would use several
    output = options.output or (ROOT / "scripts/results/gpu.json" if options.device == "cuda" else None)
    result: dict[str, Any] = {"size": options.size, "versions": versions(), "device": None, "rows": []}

    def save(row: Figures) -> None:
        result["device"] = row.pop("device", result["device"])
        result["rows"] = [*(each for each in result["rows"] if each["name"] != row["name"]), row]
        if output is not None:
            atomic_write(output, json.dumps(result, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.inputs or Path(temporary)
        os.environ["TRAINER_CACHE"] = str(folder / "encoded")
        if not any(folder.iterdir()):
            write_inputs(folder, SIZES[options.size])
        for name in options.rows:
            left = started + SECONDS - time.perf_counter()
            if options.in_process:
                run_row(name, folder, options, save)
            elif left < 10:
                save({"name": name, "error": "not run: no time was left"})
            else:
                save(run_alone(name, folder, options, min(ROWS[name].seconds, left)))
            row = result["rows"][-1]
            print(f"{name}: {row.get('error', 'done')} ({row.get('seconds', 0):.0f} s)", flush=True)
    print(json.dumps(result["device"]), json.dumps(result["versions"]), "", table(result), sep="\n")


if __name__ == "__main__":
    main()
