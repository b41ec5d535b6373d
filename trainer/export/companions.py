"""What lies beside the artifacts: the task's files, golden inputs and outputs, a script that predicts, the manifest."""

import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.export.candidate import Candidate
from trainer.export.cases import BATCH, Forward, traced_inputs
from trainer.export.folder import describe, files_of
from trainer.export.timing import Timing
from trainer.protocols import Batch, Task

GOLDEN = "golden.npz"
PREDICT = "predict.py"

_NUM_GOLDEN = 4
_PREDICTED = ("text", "label")
"""What a task reads whose artifacts `predict.py` can run."""


def write_golden(path: Path, batch: Batch, pytorch: Forward) -> None:
    """The first samples of a batch and the model's output: arrays `input.<name>` and `output`."""
    inputs = {name: value[:_NUM_GOLDEN] for name, value in batch.inputs.items()}
    arrays = {f"input.{name}": value.numpy() for name, value in inputs.items()}
    np.savez(path, allow_pickle=False, output=pytorch(inputs).numpy(), **arrays)


def write_companions(stage: Path, task: Task, formats: Sequence[str]) -> list[Path]:
    """The task's files and, where they and an ONNX graph suffice to classify texts, `predict.py`."""
    files = task.artifact_files()
    for name, text in files.items():
        (stage / name).write_text(text, "utf-8")
    written = [stage / name for name in files]
    if "onnx" in formats and task.columns() == _PREDICTED and {"labels.json", "tokenizer.json"} <= files.keys():
        written.append(Path(shutil.copyfile(Path(__file__).parent / "standalone" / PREDICT, stage / PREDICT)))
    return written


def manifest(
    stage: Path,
    task: Task,
    proved: Sequence[Candidate],
    pytorch: Mapping[str, float],
    timings: Sequence[Timing],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What was published and how it was proved; `settings` comes from the caller as it is."""
    axes = task.axes()
    return {
        "manifest_version": 1,
        "formats": [candidate.format.name for candidate in proved],
        **settings,
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("torch", "onnx", "onnxruntime")},
        "monitor": task.monitor,
        "inputs": {
            name: {
                "dtype": str(value.dtype).removeprefix("torch."),
                "shape": [axes[name].get(place, size) for place, size in enumerate(value.shape)],
            }
            for name, value in traced_inputs(task).items()
        },
        "axes": {BATCH: [1, None], **{axis: list(limits) for axis, limits in task.axis_limits().items()}},
        "metrics": dict(pytorch),
        "artifacts": {candidate.format.name: _entry(stage, candidate) for candidate in proved},
        "timings": {"threads": torch.get_num_threads(), "rows": [asdict(timing) for timing in timings]},
    }


def _entry(stage: Path, candidate: Candidate) -> dict[str, Any]:
    main, *beside = (describe(path, stage) for path in files_of(stage, candidate.format.path))
    return {
        **main,
        **({"beside": beside} if beside else {}),
        "exact": candidate.format.exact,
        "variant": candidate.variant.name,
        **candidate.details,
        "largest_difference": candidate.largest_difference,
        "decision_agreement": candidate.comparison.agreement,
        "metrics": candidate.comparison.values(),
        "shapes": [asdict(each) for each in candidate.tried],
    }
