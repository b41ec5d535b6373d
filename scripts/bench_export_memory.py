"""Memory and time of exporting a BERT-base, with the proof: the peak of memory relative to the weights, and seconds.

A separate process builds the model from its config (random weights), then publishes it. Its resident memory is read
before the model is built (only the libraries), with the model, and at its peak during the export. The ratio is the
growth over the libraries, including the model's own weights, divided by the weights: 1 is only the model.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MEMORY = 4.0
_SECONDS = 120.0
_MAX_LENGTH = 128
_MEGABYTE = 1_000_000


def main() -> None:
    """Measure, print a table, and write it as JSON to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12, help="of the BERT; 12 is its base size")
    parser.add_argument("--formats", default="onnx,torchscript", help="to export, comma-separated")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.layers, arguments.formats.split(","), arguments.threads)))
        return
    command = [sys.executable, __file__, "--child", *sys.argv[1:]]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    for name, value in found["megabytes"].items():
        print(f"{name:28}{value:9.0f} MB")
    print(f"{'processor seconds':28}{found['cpu_seconds']:9.1f}")
    ratios = {"peak over the weights": (found["ratio"], _MEMORY), "seconds": (found["seconds"], _SECONDS)}
    for name, (value, target) in ratios.items():
        print(f"{name:28}{value:9.2f}      target <= {target}: {'met' if value <= target else 'MISSED'}")
    if arguments.output:
        about = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "threads": arguments.threads}
        arguments.output.write_text(json.dumps(about | found, indent=2) + "\n", encoding="utf-8")


def measure(layers: int, formats: list[str], threads: int) -> dict[str, Any]:
    """Return megabytes, their ratio and seconds of an export in this process."""
    import onnxruntime  # noqa: F401  loaded by an export, and not to be measured
    import onnxscript  # noqa: F401
    import torch
    import torch.onnx
    from transformers import BertConfig, BertModel  # noqa: F401

    from trainer.export.artifacts import publish
    from trainer.export.model import ExportModel
    from trainer.model.pretrained import Pretrained
    from trainer.protocols import Batch

    torch.set_num_threads(threads)
    task, rows, samples = _task()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        BertConfig(num_hidden_layers=layers).save_pretrained(folder / "bert")
        before = _memory("VmRSS")
        model = Pretrained(
            **{key: getattr(task.info(), key) for key in ("vocab_size", "num_outputs", "max_length")},
            path=str(folder / "bert"),
            config={},
            pooling="mean",
            attention=None,
            pretrained=False,
        )
        weights = sum(parameter.nbytes for parameter in model.parameters()) / _MEGABYTE

        def batches() -> Iterator[Batch]:
            yield from rows

        with_model = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        begin, begin_cpu = time.perf_counter(), time.process_time()
        exported = ExportModel(
            model,
            task,
            evaluation=batches,
            training=lambda count: batches(),
            samples=samples,
            architecture={},
            provenance={},
        )
        published = publish(
            folder / "export",
            exported,
            formats=formats,  # type: ignore[arg-type]
            half=False,
            int8=None,
            calibration=1,
            golden=4,
            tolerance=1e-4,
            metric_budget=0.0,
        )
        seconds = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - begin_cpu}
    peak = _memory("VmHWM")
    assert [artifact.name for artifact in published] == formats
    megabytes = {"libraries": before, "weights": weights, "with the model": with_model, "peak": peak}
    return {"formats": formats, "megabytes": megabytes, "ratio": (peak - before) / weights, **seconds}


def _task() -> tuple[Any, list[Any], list[dict[str, str]]]:
    """Return a classification of short texts, two batches for it, and samples as read from their source."""
    from datasets import Dataset

    from trainer.data.batches import RowReader
    from trainer.sample_rng import SampleRng
    from trainer.task.text_classification import TextClassification

    texts = [f"{'some words of a text ' * (1 + number % 12)}{number}" for number in range(16)]
    labels = [("one", "two", "three")[number % 3] for number in range(16)]
    task = TextClassification(max_length=_MAX_LENGTH, vocab_size=200, tokenizer=None, lowercase=True)
    split = Dataset.from_dict({"text": texts, "label": labels})
    task.fit(split)
    encoded = Dataset.from_dict(task.encode({"text": texts, "label": labels}))
    made = []
    for start in (0, 8):
        ids = tuple(range(start, start + 8))
        made.append(task.collate(RowReader(encoded).read(ids), SampleRng(0, 0, ids, training=False), "padded"))
    return task, made, [{"text": text, "label": label} for text, label in zip(texts[:4], labels[:4], strict=True)]


def _memory(field: str) -> float:
    """Return a figure of this process in megabytes: `VmRSS` now, `VmHWM` at its peak."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024 / _MEGABYTE


if __name__ == "__main__":
    main()
