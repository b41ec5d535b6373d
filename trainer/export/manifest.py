"""`manifest.json`: what is published and how it was proved, and which artifacts of an earlier export are reused."""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch

import trainer
from trainer.documents import SEALED_SINCE, load_export_manifest
from trainer.export.cases import BATCH, Case
from trainer.export.compare import judging_metric
from trainer.export.folder import describe, files_of, find_fault, link
from trainer.export.formats.catalog import FORMATS
from trainer.export.formats.onnx import OUTPUT
from trainer.export.model import ExportModel
from trainer.export.prove import ProofResult, StagedArtifact
from trainer.export.timing import Timing
from trainer.layout import EXPORT_MANIFEST, Document
from trainer.shapes import DocumentError, to_json

_PACKAGES: Final = ("numpy", "onnx", "onnxruntime", "tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class ReusedArtifacts:
    """The artifacts of an earlier export in formats that are not written again.

    Attributes:
        entries: The earlier manifest's entry of each format that is reused.
        metrics: PyTorch's metrics in the same manifest; empty if nothing is reused.
        lost: The reason for each artifact that cannot be reused, by its file name.
    """

    entries: dict[str, Document] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)


def reuse_artifacts(folder: Path, stage: Path, written: Collection[str], conditions: Document) -> ReusedArtifacts:
    """Link the reusable artifacts of an earlier export into a stage.

    Args:
        folder: The export folder, which is left unchanged.
        stage: A folder on the same file system.
        written: The formats that this export writes.
        conditions: The conditions of this export's proof as in its manifest: `provenance`, `versions`, `tolerance` and
            `metric_budget`. An earlier artifact is reused if it was proved under the same, or with stricter limits.
    """
    earlier = [each for each in FORMATS.values() if each.name not in written and (folder / each.path).exists()]
    if not earlier:
        return ReusedArtifacts()
    reused = ReusedArtifacts()
    try:
        manifest = load_export_manifest(folder)
    except (OSError, DocumentError):
        return ReusedArtifacts(lost={each.path: f"no intact {EXPORT_MANIFEST} describes it" for each in earlier})
    entries, metrics = manifest["artifacts"], manifest["metrics"]
    changes = _changed_conditions(manifest, json.loads(to_json(conditions)))
    for format in earlier:
        entry = entries.get(format.name)
        if entry is None:
            reused.lost[format.path] = f"{EXPORT_MANIFEST} does not describe it"
        elif changes:
            reused.lost[format.path] = f"this export differs in {', '.join(changes)}"
        elif fault := _link_files(folder, stage, format.path, entry):
            reused.lost[format.path] = fault
        else:
            reused.entries[format.name] = entry
    if reused.entries:
        reused.metrics.update(metrics)
    return reused


def _changed_conditions(earlier: Document, now: Document) -> list[str]:
    """Return the names of the conditions that differ from the conditions of the earlier artifacts.

    The checksum of the checkpoint identifies the weights, so that a run may be copied or renamed; manifests of earlier
    versions do not have it.
    """
    identity = "run" if "checkpoint_sha256" in earlier["provenance"] else "checkpoint_sha256"
    changes = [
        key
        for part in ("provenance", "versions")
        for key in dict.fromkeys([*now[part], *earlier[part]])
        if key != identity and now[part].get(key) != earlier[part].get(key)
    ]
    return changes + [key for key in ("tolerance", "metric_budget") if not earlier[key] <= now[key]]


def _link_files(folder: Path, stage: Path, name: str, entry: Document) -> str:
    """Link the files of an artifact into a stage, or return the problem of the first file that has changed."""
    described = {each["file"]: each for each in (entry, *entry.get("beside", ()))}
    if fault := next(filter(None, (find_fault(folder, each) for each in described.values())), ""):
        return f"it {fault}"
    for path in files_of(folder, name):
        file = path.relative_to(folder).as_posix()
        if file in described:
            link(path, stage / file)
    return ""


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
        "manifest_version": SEALED_SINCE,
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
