"""From a trained model to files that run without it, each proved equal to it before it is published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from trainer.errors import ConfigError, ProofError, explain
from trainer.export.cases import timed_inputs
from trainer.export.companions import COMPANIONS, manifest, write_companions
from trainer.export.folder import files_of, publish_files, staging
from trainer.export.formats import FORMATS, HALF
from trainer.export.gate import Verdict, judge
from trainer.export.isolation import random_state_kept
from trainer.export.proof import Limits
from trainer.export.subject import Subject
from trainer.export.timing import EAGER, Timing, measure
from trainer.protocols import Batch, Task

_TIMING_SECONDS = 3.0


@dataclass(frozen=True)
class Artifact:
    """A published artifact.

    Attributes:
        name: Its format, a key of `FORMATS`.
        path: Its file or folder.
        num_bytes: The size of all its files.
        largest_difference: Of any output from PyTorch's, over all shapes tried and the evaluation split.
        agreement: Share of equal decisions on the evaluation split; None where an output decides nothing.
        metric: The task's metric on the evaluation split.
        pytorch_metric: The same of the model itself.
        timings: Of every format and of `pytorch`; the same in every artifact of one call.
    """

    name: str
    path: Path
    num_bytes: int
    largest_difference: float
    agreement: float | None
    metric: float
    pytorch_metric: float
    timings: list[Timing]


def publish(
    folder: Path,
    model: nn.Module,
    task: Task,
    batches: Callable[[], Iterable[Batch]],
    training: Callable[[int], Iterable[Batch]],
    architecture: dict[str, Any],
    provenance: dict[str, Any],
    samples: Sequence[Mapping[str, Any]],
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
    tolerance: float,
    metric_budget: float,
) -> list[Artifact]:
    """Writes `model` in each of `formats`, proves each equal to it and publishes what is proved.

    Beside the artifacts lie the task's own files, golden rows, inputs and outputs, a README, `predict.py` where the
    task has pieces of it and there is an ONNX graph to run, and `manifest.json`, written last. The caller's model and
    all global generators stay as they are.
    Artifacts of an earlier call do not outlive this one, unless it has no formats and does nothing.

    Args:
        folder: Made if need be.
        model: On the CPU in float32, in any mode.
        task: Gives example inputs, their axes, metrics and files.
        batches: The evaluation split, padded, with targets.
        training: The given number of training samples, padded, which some formats measure ranges on.
        architecture: What makes the model again, for formats that hold weights alone (JSON).
        provenance: Where the weights come from, for the manifest (JSON).
        samples: Rows of the evaluation split as the source gave them, the golden ones.
        formats: What to write, keys of `FORMATS`.
        half: Formats that hold weights alone have them in float16; the metric judges them.
        int8: Whether activations are quantized by the values of each call or by ranges measured before; None: by
            ranges for models mostly of convolutions, whose dynamic products are slow, by values for others.
        calibration: Training samples that ranges are measured on.
        tolerance: Largest absolute difference of an output of an exact format from the model's.
        metric_budget: How much of the task's metric an artifact may lose, as in `Limits`.

    Raises:
        ConfigError: A limit is negative.
        ProofError: An artifact cannot be exported or is not equal; it is removed, the others are published.
    """
    _check(tolerance=tolerance, metric_budget=metric_budget)
    if not formats:
        return []
    limits = Limits(tolerance, metric_budget)
    chosen = [(FORMATS | HALF if half else FORMATS)[name] for name in dict.fromkeys(formats)]
    with random_state_kept(), torch.no_grad(), staging(folder) as stage:
        subject = Subject(model, task, partial(training, calibration), architecture=architecture, int8=int8)
        verdict = judge(chosen, stage, subject, batches, limits)
        timings = _finish(stage, subject, samples, verdict, {"provenance": provenance, **asdict(limits)})
        artifacts = _artifacts(stage, folder, verdict, task.monitor, timings)
        images = (path.name for path in folder.glob("golden-*"))
        publish_files(stage, folder, known=[*(format.path for format in FORMATS.values()), *COMPANIONS, *images])
    if verdict.failures:
        messages = [message for failure in verdict.failures for message in failure.messages]
        raise ProofError(*messages) from verdict.failures[0]
    return artifacts


def _finish(
    stage: Path,
    subject: Subject,
    samples: Sequence[Mapping[str, Any]],
    verdict: Verdict,
    settings: dict[str, Any],
) -> list[Timing]:
    """Writes what lies beside the artifacts, the manifest last; nothing where none is proved."""
    if not verdict.proved:
        return []
    programs = {each.format.name: each.forward for each in verdict.proved if each.format.timed}
    forwards = {EAGER: subject.pytorch, **programs}
    timings = measure(forwards, timed_inputs(subject.task), seconds=_TIMING_SECONDS) if programs else []
    content = manifest(stage, subject, verdict.proved, verdict.metrics, timings, settings)
    failure = write_companions(stage, subject, samples, content)
    if failure is not None:
        verdict.failures.append(failure)
    return timings


def _artifacts(stage: Path, folder: Path, verdict: Verdict, monitor: str, timings: list[Timing]) -> list[Artifact]:
    return [
        Artifact(
            name=candidate.format.name,
            path=folder / candidate.format.path,
            num_bytes=sum(path.stat().st_size for path in files_of(stage, candidate.format.path)),
            largest_difference=candidate.largest_difference,
            agreement=candidate.comparison.agreement,
            metric=candidate.comparison.values()[monitor],
            pytorch_metric=verdict.metrics[monitor],
            timings=timings,
        )
        for candidate in verdict.proved
    ]


def _check(**limits: float) -> None:
    messages = [explain(name, "must not be negative", value=value) for name, value in limits.items() if not value >= 0]
    if messages:
        raise ConfigError(*messages)
