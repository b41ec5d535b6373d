"""The pipeline from a trained model to published artifacts: write, prove, reuse, time, bundle, publish."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Interval

from trainer.constraints import Count, NonNegative, Positive, validated
from trainer.errors import ProofError
from trainer.export import timing
from trainer.export.bundle_files import BUNDLE_FILES, write_bundle_files
from trainer.export.cases import timed_inputs
from trainer.export.compare import Limits
from trainer.export.folder import complete_publishing, publish_files, refuse_foreign, staging
from trainer.export.formats.catalog import FORMATS, HALF_FORMATS, Format
from trainer.export.manifest import ReusedArtifacts, make_manifest, package_versions, reuse_artifacts
from trainer.export.model import ExportModel, preserve_random_state
from trainer.export.prove import ProofResult, prove_formats
from trainer.export.timing import EAGER, Timing, measure
from trainer.layout import EXPORT_MANIFEST, Document
from trainer.progress import phase

_KNOWN = (*(each.path for each in FORMATS.values()), *BUNDLE_FILES)

logger = logging.getLogger(__name__)

FormatName = Literal[
    "onnx", "onnx_fp16", "onnx_int8", "onnx_cache", "torchscript", "pt2", "safetensors", "pth", "pth_legacy"
]


@dataclass(frozen=True)
class Artifact:
    """A published artifact.

    Attributes:
        name: Its format, a key of `FORMATS`.
        path: Its file or folder.
        num_bytes: Size of all its files.
        largest_difference: Largest difference of an output from PyTorch's, over all shapes and the evaluation split.
        agreement: Share of equal decisions on the evaluation split; None if outputs are no decisions.
        metric: The judging metric on the evaluation split; None if the task has no metric.
        pytorch_metric: The same of the model itself. For a reused artifact, None also stands for NaN or infinity.
        timings: Latencies of all formats and of `pytorch`, the same for all artifacts of one call.
        reused: True if an earlier call wrote and proved it.
    """

    name: str
    path: Path
    num_bytes: int
    largest_difference: float | None
    agreement: float | None
    metric: float | None
    pytorch_metric: float | None
    timings: list[Timing]
    reused: bool


@validated()
def publish(
    folder: Path,
    model: ExportModel,
    force: bool = False,
    *,
    formats: list[FormatName],
    half: bool,
    int8: Literal["dynamic", "static"] | None,
    calibration: Count,
    golden: Annotated[int, Interval(ge=0, le=4)],
    tolerance: Positive,
    metric_budget: NonNegative,
) -> list[Artifact]:
    """Write a model in each of `formats`, prove that each equals it, and publish those that pass.

    Artifacts of an earlier call are reused, see `reuse_artifacts`. The model and all global generators are unchanged.

    Args:
        folder: The export folder, created if it does not exist.
        model: The model.
        force: Files in the folder that no export has written may be replaced and removed.
        formats, half, golden: See `conf/export`.
        int8, calibration: See `ExportModel`.
        tolerance, metric_budget: See `Limits`.

    Returns:
        All artifacts in the folder.

    Raises:
        ConfigError: A number is out of range, or the export would replace or remove a file from elsewhere.
        CheckpointError: The folder cannot be written or is in use.
        ProofError: An artifact cannot be exported or is not equal. The others are published, and earlier artifacts that
            can be reused stay. If no artifact passes, the folder is unchanged.
    """
    if not formats:
        return []
    selected = [(FORMATS | HALF_FORMATS if half else FORMATS)[name] for name in dict.fromkeys(formats)]
    folders = [FORMATS["safetensors"].path]
    files = [EXPORT_MANIFEST, *(each.path for each in FORMATS.values()), *BUNDLE_FILES, *model.task.artifact_files()]
    complete_publishing(folder, _KNOWN)
    refuse_foreign(folder, files=[name for name in files if name not in folders], folders=folders, force=force)
    limits = Limits(tolerance, metric_budget)
    with preserve_random_state(), torch.no_grad(), staging(folder) as stage:
        model = replace(model, calibration=calibration, int8=int8, scratch=stage)
        return _export(folder, stage, model, selected, limits, golden, force)


def _export(
    folder: Path,
    stage: Path,
    model: ExportModel,
    formats: Sequence[Format],
    limits: Limits,
    golden: int,
    force: bool,
) -> list[Artifact]:
    """Fill a stage and publish it; if nothing in it is proved, the folder is unchanged."""
    result = prove_formats(formats, stage, model, limits)
    failures = list(result.failures)
    if not result.proved:
        raise _join(failures)
    conditions = {"provenance": model.provenance, **asdict(limits), "versions": package_versions()}
    reused = reuse_artifacts(folder, stage, [artifact.format.name for artifact in result.proved], conditions)
    timings = _measure(stage, model, result, reused)
    manifest = make_manifest(stage, model, result, reused, timings, conditions)
    failure = write_bundle_files(stage, model, golden, manifest)
    failures += [] if failure is None else [failure]
    # The names of golden images depend on the rows.
    refuse_foreign(folder, files=[path.name for path in stage.glob("golden-*")], folders=[], force=force)
    publish_files(stage, folder, known=_KNOWN)
    for name, reason in reused.lost.items():
        logger.warning("%s, from an earlier export, is removed: %s", folder / name, reason)
    if failures:
        raise _join(failures)
    return _artifacts(folder, manifest, timings)


def _join(failures: Sequence[ProofError]) -> ProofError:
    error = ProofError(*(message for failure in failures for message in failure.messages))
    error.__cause__ = failures[0]
    return error


def _measure(stage: Path, model: ExportModel, result: ProofResult, reused: ReusedArtifacts) -> list[Timing]:
    """Time all programs, written and reused, together with eager PyTorch."""
    programs = {artifact.format.name: artifact.forward for artifact in result.proved if artifact.format.timed}
    for format in (FORMATS[name] for name in reused.entries):
        if format.timed:
            programs[format.name], _ = format.load(stage / format.path, model)
    if not programs:
        return []
    forwards = {EAGER: model.eager_forward, **{name: programs[name] for name in FORMATS if name in programs}}
    with phase("measuring the latency"):
        return measure(forwards, timed_inputs(model.task), seconds=timing.SECONDS_PER_MODEL * len(forwards))


def _artifacts(folder: Path, manifest: Document, timings: list[Timing]) -> list[Artifact]:
    monitor = manifest["monitor"]
    return [
        Artifact(
            name=name,
            path=folder / FORMATS[name].path,
            num_bytes=sum(file["bytes"] for file in (entry, *entry.get("beside", ()))),
            largest_difference=entry["largest_difference"],
            agreement=entry["decision_agreement"],
            metric=entry["metrics"].get(monitor),
            pytorch_metric=manifest["metrics"].get(monitor),
            timings=timings,
            reused=name in manifest["kept"],
        )
        for name, entry in manifest["artifacts"].items()
    ]
