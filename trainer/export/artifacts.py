"""From a trained model to files that run without it, each proved equal to it before it is published."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from trainer.errors import ConfigError, ProofError, format_error
from trainer.export.cases import timed_inputs
from trainer.export.companions import COMPANIONS, manifest, versions, write_companions
from trainer.export.folder import MANIFEST, publish_files, refuse_foreign, staging
from trainer.export.formats import FORMATS, HALF, Format
from trainer.export.gate import Verdict, judge
from trainer.export.isolation import random_state_kept
from trainer.export.kept import Kept, keep
from trainer.export.original import Original
from trainer.export.proof import Limits
from trainer.export.subject import Subject
from trainer.export.timing import EAGER, Timing, measure

_TIMING_SECONDS = 1.2  # for each model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """A published artifact.

    Attributes:
        name: Its format, a key of `FORMATS`.
        path: Its file or folder.
        num_bytes: The size of all its files.
        largest_difference: Of any output from PyTorch's, over all shapes tried and the evaluation split.
        agreement: Share of equal decisions on the evaluation split; None where an output decides nothing.
        metric: Of those of the task that which judges artifacts, on the evaluation split; None where there is none.
        pytorch_metric: The same of the model itself. Of an artifact that is kept, None is a number that is not finite.
        timings: Of every format and of `pytorch`; the same in every artifact of one call.
        kept: Whether an earlier call wrote and proved it.
    """

    name: str
    path: Path
    num_bytes: int
    largest_difference: float | None
    agreement: float | None
    metric: float | None
    pytorch_metric: float | None
    timings: list[Timing]
    kept: bool


def publish(
    folder: Path,
    original: Original,
    *,
    formats: list[
        Literal[
            "onnx",
            "onnx_fp16",
            "onnx_int8",
            "onnx_cache",
            "torchscript",
            "pt2",
            "safetensors",
            "pth",
            "pth_legacy",
        ]
    ],
    half: bool,
    int8: Literal["dynamic", "static"] | None,
    calibration: int,
    golden: int,
    tolerance: float,
    metric_budget: float,
) -> list[Artifact]:
    """Writes a model in each of `formats`, proves each equal to it and publishes what is proved.

    Artifacts of an earlier call stay as `keep` says. The model and all global generators stay as they are.

    Args:
        folder: Where to; made if need be.
        original: The model.
        formats, half, calibration, golden: As `conf/export` says.
        int8: As in `Subject`.
        tolerance, metric_budget: As in `Limits`.

    Returns:
        All that is in the folder.

    Raises:
        ConfigError: A number is negative.
        CheckpointError: The folder cannot be written, is in use, or holds what no export made where this one writes.
        ProofError: An artifact cannot be exported or is not equal; the others are published, and what an earlier call
            published in its place stays as the rest does. Where there are no others the folder stays as it was.
    """
    _check(golden=golden, tolerance=tolerance, metric_budget=metric_budget)
    if not formats:
        return []
    chosen = [(FORMATS | HALF if half else FORMATS)[name] for name in dict.fromkeys(formats)]
    folders = [FORMATS["safetensors"].path]
    files = [MANIFEST, *(each.path for each in FORMATS.values()), *COMPANIONS, *original.task.artifact_files()]
    refuse_foreign(folder, files=[name for name in files if name not in folders], folders=folders)
    with random_state_kept(), torch.no_grad(), staging(folder) as stage:
        subject = original.subject(calibration, int8, scratch=stage)
        return _export(folder, stage, original, subject, chosen, Limits(tolerance, metric_budget), golden)


def _export(
    folder: Path,
    stage: Path,
    original: Original,
    subject: Subject,
    formats: Sequence[Format],
    limits: Limits,
    golden: int,
) -> list[Artifact]:
    """Fills a stage and publishes it; where nothing in it is proved, the folder stays as it was."""
    terms = {"provenance": original.provenance, **asdict(limits), "versions": versions()}
    verdict = judge(formats, stage, subject, original.evaluation, limits)
    failures = list(verdict.failures)
    if not verdict.proved:
        raise _failed(failures)
    kept = keep(folder, stage, [candidate.format.name for candidate in verdict.proved], terms)
    timings = _timings(stage, subject, verdict, kept)
    content = manifest(stage, subject, verdict, kept, timings, terms)
    failure = write_companions(stage, subject, original.samples, golden, content)
    failures += [] if failure is None else [failure]
    publish_files(stage, folder, known=[*(format.path for format in FORMATS.values()), *COMPANIONS])
    for name, reason in kept.lost.items():
        logger.warning("%s, of an earlier export, is removed: %s", folder / name, reason)
    if failures:
        raise _failed(failures)
    return _artifacts(folder, content, timings)


def _failed(failures: Sequence[ProofError]) -> ProofError:
    error = ProofError(*(message for failure in failures for message in failure.messages))
    error.__cause__ = failures[0]
    return error


def _timings(stage: Path, subject: Subject, verdict: Verdict, kept: Kept) -> list[Timing]:
    """Of all programs that there are, side by side."""
    programs = {each.format.name: each.forward for each in verdict.proved if each.format.timed}
    for format in (FORMATS[name] for name in kept.entries):
        if format.timed:
            programs[format.name], _ = format.load(stage / format.path, subject)
    if not programs:
        return []
    forwards = {EAGER: subject.pytorch, **{name: programs[name] for name in FORMATS if name in programs}}
    return measure(forwards, timed_inputs(subject.task), seconds=_TIMING_SECONDS * len(forwards))


def _artifacts(folder: Path, content: Mapping[str, Any], timings: list[Timing]) -> list[Artifact]:
    monitor = content["monitor"]
    return [
        Artifact(
            name=name,
            path=folder / FORMATS[name].path,
            num_bytes=sum(each["bytes"] for each in (entry, *entry.get("beside", ()))),
            largest_difference=entry["largest_difference"],
            agreement=entry["decision_agreement"],
            metric=entry["metrics"].get(monitor),
            pytorch_metric=content["metrics"].get(monitor),
            timings=timings,
            kept=name in content["kept"],
        )
        for name, entry in content["artifacts"].items()
    ]


def _check(**numbers: float) -> None:
    messages = [
        format_error(name, "must not be negative", value=value) for name, value in numbers.items() if not value >= 0
    ]
    if messages:
        raise ConfigError(*messages)
