"""The content of `manifest.json`: what is published and how it was proved."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch

import trainer
from trainer.export.cases import BATCH, Case
from trainer.export.compare import judging_metric
from trainer.export.folder import describe, files_of
from trainer.export.formats.catalog import FORMATS
from trainer.export.formats.onnx import OUTPUT
from trainer.export.model import ExportModel
from trainer.export.prove import ProofResult, StagedArtifact
from trainer.export.reuse import ReusedArtifacts
from trainer.export.timing import Timing
from trainer.layout import Document

_VERSION: Final = 2
_PACKAGES: Final = ("numpy", "onnx", "onnxruntime", "tokenizers", "torch", "transformers")


def make_manifest(
    stage: Path,
    model: ExportModel,
    result: ProofResult,
    reused: ReusedArtifacts,
    timings: Sequence[Timing],
    conditions: Document,
) -> Document:
    """Return the manifest of the staged and the reused artifacts, except for the files next to them.

    Args:
        stage: The folder with the artifacts.
        model: The model.
        result: The artifacts of this export.
        reused: The artifacts of an earlier export.
        timings: Latencies of all artifacts.
        conditions: The conditions of the proof, see `reuse_artifacts`.
    """
    task = model.task
    axes = task.axes()
    entries = {artifact.format.name: _entry(stage, artifact) for artifact in result.proved} | reused.entries
    artifacts = {name: entries[name] for name in FORMATS if name in entries}
    return {
        "manifest_version": _VERSION,
        "task": type(task).__name__,
        "reads": list(task.input_columns()),
        "formats": list(artifacts),
        "kept": list(reused.entries),
        **conditions,
        "monitor": judging_metric(task),
        "inputs": {
            name: {
                "dtype": str(value.dtype).removeprefix("torch."),
                "shape": [axes[name].get(place, size) for place, size in enumerate(value.shape)],
            }
            for name, value in model.traced.items()
        },
        "outputs": {OUTPUT: {"dtype": "float32", "shape": _output_shape(model.cases)}},
        "axes": {BATCH: [1, None], **{axis: list(limits) for axis, limits in task.axis_limits().items()}},
        "pad_id": task.info().pad_id,
        "metrics": reused.metrics | result.metrics,
        "artifacts": artifacts,
        "timings": {"threads": torch.get_num_threads(), "rows": [asdict(timing) for timing in timings]},
    }


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that write and run artifacts."""
    packages = {package: version(package) for package in _PACKAGES}
    return {"trainer": trainer.__version__, "python": platform.python_version(), **packages}


def _output_shape(cases: Sequence[Case]) -> list[int | str]:
    """Return the output's shape: the axis that a size equals in all cases, or a number if there is none."""
    return [
        next((axis for axis in cases[0].sizes if all(c.expected.shape[place] == c.sizes[axis] for c in cases)), size)
        for place, size in enumerate(cases[0].expected.shape)
    ]


def _entry(stage: Path, artifact: StagedArtifact) -> Document:
    main, *further = (describe(path, stage) for path in files_of(stage, artifact.format.path))
    return {
        **main,
        **({"beside": further} if further else {}),
        "exact": artifact.format.exact,
        "variant": artifact.variant.name,
        **artifact.details,
        "largest_difference": artifact.largest_difference,
        "relative_difference": artifact.comparison.agreement.relative_difference,
        "decision_agreement": artifact.comparison.agreement.decision_agreement,
        "metrics": artifact.comparison.metrics(),
        "shapes": [asdict(shape) for shape in artifact.shapes],
    }
