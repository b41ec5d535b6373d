"""The proof: formats are written and compared with PyTorch, variant after variant, until one passes or none is left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from trainer.errors import ProofError, format_error
from trainer.export.cases import Forward
from trainer.export.compare import (
    Limits,
    OutputAgreement,
    ShapeResult,
    check_metric,
    compare_cases,
    format_shapes,
    judging_metric,
    largest_difference,
    proof_errors,
)
from trainer.export.folder import remove
from trainer.export.formats.catalog import FORMATS, Format, Variant
from trainer.export.model import ExportModel
from trainer.layout import Document
from trainer.progress import phase
from trainer.protocols import Batch, Target, Task
from trainer.targets import compute_artifact_scores

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

logger = logging.getLogger(__name__)

_CACHE_SIZE = 2**24  # values of PyTorch's outputs that are kept between attempts: 64 MB

_EXPORT_REMEDY = "Keep input sizes symbolic in forward (no int() of a size, no loop over it), or leave out this format"
_LOAD_REMEDY = "Leave out this format; weights beyond float16 also need half=false"
_SOURCE_REMEDY = "Leave out this format, or fix the model's forward"


class Comparison:
    """One artifact next to PyTorch on the evaluation split.

    Args:
        artifact: Its file name.
        forward: The loaded artifact.
        metrics: Fresh metrics.
        tolerance: Largest difference of an output, see `largest_difference`.
        target: Type of the task's targets, see `OutputAgreement`.
        score: Turns outputs and targets into the scores that metrics read.

    Attributes:
        largest_difference: Largest absolute difference of an output so far.
        agreement: Agreement over all outputs.
        failure: The error that ended the comparison; later batches are not run.
    """

    def __init__(
        self,
        artifact: str,
        forward: Forward,
        metrics: MetricCollection,
        tolerance: float,
        target: Target,
        score: Callable[[Tensor, Tensor], Tensor] = lambda output, target: output,
    ) -> None:
        self.largest_difference = 0.0
        self.agreement = OutputAgreement(target)
        self.failure: ProofError | None = None
        self._artifact = artifact
        self._forward = forward
        self._metrics = metrics
        self._tolerance = tolerance
        self._score = score

    def update(self, batch: Batch, where: str, expected: Tensor) -> None:
        """Run one batch for which PyTorch's output is `expected` (B, ..., C)."""
        if self.failure is not None:
            return
        assert batch.target is not None, "a proof needs targets"
        try:
            with proof_errors(self._artifact, f"fails {where}", "The file is removed"):
                output = self._forward(batch.inputs)
            difference = largest_difference(self._artifact, where, batch.inputs, expected, output, self._tolerance)
        except ProofError as error:
            self.failure = error
            return
        self.largest_difference = max(self.largest_difference, difference)
        self._metrics.update(self._score(output, batch.target), batch.target)
        self.agreement.update(expected, output, batch.target)

    def metrics(self) -> dict[str, float]:
        """Return the artifact's metrics over all batches."""
        return _to_numbers(self._metrics)


class Evaluation:
    """The evaluation split and PyTorch's outputs for it.

    Args:
        batches: Returns the split in padded batches with targets, the same at each call.
        forward: The eager model.
        metrics: Fresh metrics.
        cache_size: Number of output values to keep, so that the model is not run again on their batches.
        score: Turns outputs and targets into the scores that metrics read.

    Attributes:
        metrics: PyTorch's metrics; empty until `run` has been called.
    """

    def __init__(
        self,
        batches: Callable[[], Iterable[Batch]],
        forward: Forward,
        metrics: MetricCollection,
        *,
        cache_size: int,
        score: Callable[[Tensor, Tensor], Tensor] = lambda output, target: output,
    ) -> None:
        self._score = score
        self.metrics: dict[str, float] = {}
        self._batches = batches
        self._forward = forward
        self._collection = metrics
        self._room = cache_size
        self._outputs: list[Tensor] = []
        self._done = False

    def run(self, comparisons: Sequence[Comparison]) -> None:
        """Run every artifact on every batch, next to PyTorch."""
        batch: Batch | None = None
        for number, batch in enumerate(self._batches()):
            assert batch.target is not None, "a proof needs targets"
            expected = self._outputs[number] if number < len(self._outputs) else self._forward(batch.inputs)
            if not self._done:
                self._collection.update(self._score(expected, batch.target), batch.target)
                self._keep(number, expected)
            for comparison in comparisons:
                comparison.update(batch, f"in batch {number} of the evaluation split", expected)
        assert batch is not None, "a proof needs an evaluation split with samples"
        self.metrics = _to_numbers(self._collection)
        self._done = True

    def _keep(self, number: int, output: Tensor) -> None:
        """Keep the output of a batch if all earlier outputs are kept and there is room."""
        if number == len(self._outputs) and output.numel() <= self._room:
            self._room -= output.numel()
            self._outputs.append(output.clone())  # not a view that would keep a larger tensor alive


def _to_numbers(metrics: MetricCollection) -> dict[str, float]:
    return {name: value.item() for name, value in metrics.compute().items()}


@dataclass(frozen=True)
class StagedArtifact:
    """A format in one of its variants: written into the staging folder and loaded from there.

    Attributes:
        format: The format.
        variant: The way in which it was written.
        forward: The loaded artifact.
        shapes: The shapes that it was run at.
        comparison: Its comparison with PyTorch on real data; empty until the evaluation split has been run.
        details: Manifest keys of only this artifact.
    """

    format: Format
    variant: Variant
    forward: Forward
    shapes: list[ShapeResult]
    comparison: Comparison
    details: Document

    @property
    def largest_difference(self) -> float:
        """Largest difference of an output, over all shapes and the evaluation split."""
        return max(self.comparison.largest_difference, *(shape.difference for shape in self.shapes))

    def check_evaluation(self, pytorch: Mapping[str, float], task: Task, budget: float) -> None:
        """Check the results on the evaluation split.

        Raises:
            ProofError: An output differed, the judging metric is worse than PyTorch's by more than `budget`, or the
                outputs of an inexact format do not agree with PyTorch's.
        """
        if self.comparison.failure is not None:
            raise self.comparison.failure
        if (metric := judging_metric(task)) is not None:
            check_metric(
                self.format.path,
                metric,
                pytorch[metric],
                self.comparison.metrics()[metric],
                higher_is_better=task.metrics()[metric].higher_is_better,
                budget=budget,
            )
        if not self.format.exact:
            self.comparison.agreement.check(self.format.path)


@dataclass(frozen=True)
class ProofResult:
    """The result of `prove_formats`.

    Attributes:
        proved: The artifacts that passed, in the order of the formats. The files of all others are removed.
        failures: The reasons of the others, one per format.
        metrics: PyTorch's metrics on the evaluation split; empty if nothing could be run on it.
    """

    proved: list[StagedArtifact]
    failures: list[ProofError]
    metrics: dict[str, float]


def prove_formats(formats: Sequence[Format], stage: Path, model: ExportModel, limits: Limits) -> ProofResult:
    """Write each format into `stage` and prove it. Each attempt passes over the evaluation split once.

    A format that another one is made of is proved as well, even if it was not requested.

    Args:
        formats: The formats to write; each attempt tries the next variant of every format that has not passed.
        stage: A folder.
        model: The model.
        limits: The differences that an artifact may have.
    """
    trials = _make_trials(formats)
    attempts = max(len(trial.format.variants) for trial in trials)
    cache_size = _CACHE_SIZE if attempts > 1 else 0
    score = partial(compute_artifact_scores, model.task)
    evaluation = Evaluation(
        model.evaluation, model.eager_forward, model.task.metrics(), cache_size=cache_size, score=score
    )
    for attempt in range(attempts):
        staged: list[tuple[_Trial, StagedArtifact]] = []
        for trial in trials:
            if trial.is_due(attempt):
                remove(stage, trial.format.path)
                with trial.record_refusal():
                    variant = trial.format.variants[attempt]
                    staged.append((trial, stage_artifact(trial.format, variant, stage, model, limits)))
        if staged:
            with phase("proving on the evaluation split"):
                evaluation.run([artifact.comparison for _, artifact in staged])
        for trial, artifact in staged:
            with trial.record_refusal():
                artifact.check_evaluation(evaluation.metrics, model.task, limits.metric_budget)
                trial.artifact = artifact
    _warn_about_metric(judging_metric(model.task), evaluation.metrics)
    requested = {trial.format.name: trial for trial in trials if trial.format in formats}
    for trial in trials:
        if trial.format.name not in requested or not trial.passed:
            remove(stage, trial.format.path)
    in_order = [requested[format.name] for format in formats]
    return ProofResult(
        proved=[trial.artifact for trial in in_order if trial.passed and trial.artifact],
        failures=[_failure(trial, requested) for trial in in_order if not trial.passed],
        metrics=evaluation.metrics,
    )


def stage_artifact(format: Format, variant: Variant, stage: Path, model: ExportModel, limits: Limits) -> StagedArtifact:
    """Write a variant of a format into `stage`, load the file, and compare it with PyTorch at the model's cases.

    Raises:
        ProofError: It cannot be written, loaded or run, a dimension is frozen, or an output differs.
    """
    path = stage / format.path
    cases = model.cases  # PyTorch's outputs, computed before an exporter can change the model
    with (
        phase(f"writing {format.path}"),
        proof_errors(format.path, f"cannot be exported ({format_shapes(model.traced)})", _EXPORT_REMEDY),
    ):
        details = variant.write(path, model)
    tolerance = limits.tolerance_of(exact=format.exact, bitwise=format.bitwise)
    with phase(f"proving {format.path}"):
        with proof_errors(format.path, "cannot be loaded", _LOAD_REMEDY):
            forward, declared = format.load(path, model)
        shapes = compare_cases(format.path, forward, cases, tolerance)
    task = model.task
    score = partial(compute_artifact_scores, task)
    comparison = Comparison(format.path, forward, task.metrics(), tolerance, task.target, score)
    return StagedArtifact(format, variant, forward, shapes, comparison, {**details, **declared})


@dataclass
class _Trial:
    """The attempts at one format.

    Attributes:
        format: The format.
        source: The trial of the format that it is made of.
        refusals: The reason for each variant that was refused.
        artifact: The variant that passed.
    """

    format: Format
    source: _Trial | None
    refusals: list[ProofError] = field(default_factory=list)
    artifact: StagedArtifact | None = None

    @property
    def passed(self) -> bool:
        return self.artifact is not None and not self.has_refused_source

    @property
    def has_refused_source(self) -> bool:
        return self.source is not None and bool(self.source.refusals)

    def is_due(self, attempt: int) -> bool:
        """Return whether a variant should be tried in this attempt."""
        return self.artifact is None and attempt < len(self.format.variants) and not self.has_refused_source

    @contextmanager
    def record_refusal(self) -> Iterator[None]:
        """Record a `ProofError` of the block instead of raising it."""
        try:
            yield
        except ProofError as refusal:
            self.refusals.append(refusal)


def _make_trials(formats: Sequence[Format]) -> list[_Trial]:
    """Make a trial for each format; the formats that others are made of come first."""
    requested = {format.name: format for format in formats}
    names = dict.fromkeys(format.made_of for format in formats if format.made_of is not None)
    sources = {name: _Trial(requested.get(name, FORMATS[name]), None) for name in names}
    others = [format for format in formats if format.name not in sources]
    return [*sources.values(), *(_Trial(format, sources.get(format.made_of or "")) for format in others)]


def _failure(trial: _Trial, requested: Mapping[str, _Trial]) -> ProofError:
    """Return the reason why no variant passed; variants with the same reason share a line."""
    format = trial.format
    if trial.source is not None and trial.has_refused_source:
        made_of = trial.source.format
        problem = f"is made of {made_of.path}, which is refused"
        # If the source was requested, its own failure is reported as well.
        reasons = [] if made_of.name in requested else [f"  {each}" for each in trial.source.refusals[0].messages]
        return ProofError("\n".join([format_error(format.path, problem, _SOURCE_REMEDY), *reasons]))
    if len(format.variants) == 1:
        return trial.refusals[0]
    names: dict[str, list[str]] = {}
    for variant, refusal in zip(format.variants, trial.refusals, strict=True):
        for message in refusal.messages:
            names.setdefault(message, []).append(variant.name)
    reasons = [f"  {'; '.join(variants)}: {message}" for message, variants in names.items()]
    problem = f"none of its {len(format.variants)} variants passes"
    return ProofError("\n".join([format_error(format.path, problem, "Leave out this format"), *reasons]))


def _warn_about_metric(metric: str | None, metrics: Mapping[str, float]) -> None:
    value = metrics.get(metric or "", 0.0)
    if not isfinite(value):
        logger.warning("%s is %s over the evaluation split: it cannot judge artifacts", metric, value)
