"""From a trained model to files that run without it, each proved equal to it before it is published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from trainer.errors import ConfigError, ProofError, explain
from trainer.export.candidate import FILES, Candidate, export_candidate, files_of
from trainer.export.cases import Forward, forward_of, proof_cases, timed_inputs
from trainer.export.companions import GOLDEN, PREDICT, manifest, write_companions, write_golden
from trainer.export.evaluation import evaluate
from trainer.export.folder import MANIFEST, describe, publish_files, staging, write_json
from trainer.export.isolation import random_state_kept
from trainer.export.timing import Timing, measure
from trainer.protocols import Batch, Task

_TIMING_SECONDS = 3.0


@dataclass(frozen=True)
class Artifact:
    """A published artifact.

    Attributes:
        name: Its format, `onnx` or `torchscript`.
        path: Its file.
        num_bytes: Its size.
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
    provenance: dict[str, Any],
    *,
    formats: list[Literal["onnx", "torchscript"]],
    tolerance: float,
    metric_budget: float,
) -> list[Artifact]:
    """Writes `model` in each of `formats`, proves each file equal to it and publishes what is proved.

    Beside the artifacts lie the task's own files, golden inputs and outputs, `predict.py` where they classify
    texts, and `manifest.json`, written last. The caller's model and all global generators stay as they are.
    Artifacts of an earlier call do not outlive this one, unless it has no formats and does nothing.

    Args:
        folder: Made if need be.
        model: On the CPU in float32, in any mode.
        task: Gives example inputs, their axes, metrics and files.
        batches: The evaluation split, padded, with targets.
        provenance: Where the weights come from, for the manifest (JSON).
        formats: What to write.
        tolerance: Largest absolute difference of an output from the model's.
        metric_budget: How much of the task's metric an artifact may lose.

    Raises:
        ConfigError: A limit is negative.
        ProofError: An artifact cannot be exported or is not equal; it is removed, the others are published.
    """
    _check(tolerance=tolerance, metric_budget=metric_budget)
    if not formats:
        return []
    candidates: list[Candidate] = []
    artifacts: list[Artifact] = []
    failures: list[ProofError] = []
    settings = {"provenance": provenance, "tolerance": tolerance, "metric_budget": metric_budget}
    with random_state_kept(), torch.no_grad(), staging(folder) as stage:
        pytorch = forward_of(_frozen_copy(model))
        cases = proof_cases(task, pytorch)  # before exporting: nothing that an exporter does can reach them
        exported = _frozen_copy(model)
        for name in dict.fromkeys(formats):
            with _collected(failures):
                candidates.append(export_candidate(name, stage, exported, task, cases, tolerance))
        if candidates:
            artifacts = _finish(stage, folder, candidates, pytorch, task, batches(), settings, failures)
        for name in {*formats}.difference(artifact.name for artifact in artifacts):
            for path in files_of(stage, name):
                path.unlink()
        publish_files(stage, folder, known=[*FILES.values(), GOLDEN, PREDICT])
    if failures:
        raise ProofError(*(message for failure in failures for message in failure.messages)) from failures[0]
    return artifacts


def _finish(
    stage: Path,
    folder: Path,
    candidates: list[Candidate],
    pytorch: Forward,
    task: Task,
    batches: Iterable[Batch],
    settings: dict[str, Any],
    failures: list[ProofError],
) -> list[Artifact]:
    """Proves the candidates on real data and, where any holds, writes what lies beside it, the manifest last."""
    values, first = evaluate(batches, pytorch, task.metrics(), [candidate.comparison for candidate in candidates])
    proved = []
    for candidate in candidates:
        with _collected(failures):
            candidate.prove_scores(values, task, settings["metric_budget"])
            proved.append(candidate)
    if not proved:
        return []
    forwards = {"pytorch": pytorch, **{candidate.name: candidate.forward for candidate in proved}}
    timings = measure(forwards, timed_inputs(task), seconds=_TIMING_SECONDS)
    write_golden(stage / GOLDEN, first, pytorch)
    companions = [stage / GOLDEN, *write_companions(stage, task, list(forwards))]
    content = manifest(stage, task, proved, values, timings, settings)
    write_json(stage / MANIFEST, {**content, "files": [describe(path) for path in companions]})
    return [
        Artifact(
            name=candidate.name,
            path=folder / FILES[candidate.name],
            num_bytes=content["artifacts"][candidate.name]["bytes"],
            largest_difference=candidate.largest_difference,
            agreement=candidate.comparison.agreement,
            metric=candidate.comparison.values()[task.monitor],
            pytorch_metric=values[task.monitor],
            timings=timings,
        )
        for candidate in proved
    ]


@contextmanager
def _collected(failures: list[ProofError]) -> Iterator[None]:
    try:
        yield
    except ProofError as failure:
        failures.append(failure)


def _frozen_copy(model: nn.Module) -> nn.Module:
    return deepcopy(model).eval().requires_grad_(False)


def _check(**limits: float) -> None:
    messages = [explain(name, "must not be negative", value=value) for name, value in limits.items() if not value >= 0]
    if messages:
        raise ConfigError(*messages)
