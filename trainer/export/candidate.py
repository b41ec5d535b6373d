"""One format of a model on its way to being published."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.export.cases import Forward
from trainer.export.evaluation import Comparison, judging_metric
from trainer.export.formats import Format, Variant
from trainer.export.proof import Limits, Tried, prove_cases, prove_metric, shapes_of, turned_into_proof_error
from trainer.export.subject import Subject
from trainer.protocols import Task

_EXPORT_REMEDY = "Keep input sizes symbolic in forward (no int() of a size, no loop over it), or leave out this format"


@dataclass(frozen=True)
class Candidate:
    """A format in one of its variants, loaded from what was staged.

    Attributes:
        format: The format.
        variant: How it was written.
        forward: The artifact.
        tried: The shapes it was run at.
        comparison: With PyTorch on real data; empty until the evaluation split has been run.
        details: What the manifest says of this artifact alone.
    """

    format: Format
    variant: Variant
    forward: Forward
    tried: list[Tried]
    comparison: Comparison
    details: dict[str, Any]

    @property
    def largest_difference(self) -> float:
        """Of any output, over all shapes tried and the evaluation split."""
        return max(self.comparison.largest_difference, *(each.difference for each in self.tried))

    def prove_scores(self, pytorch: dict[str, float], task: Task, budget: float) -> None:
        """Raises what the evaluation split found.

        Raises:
            ProofError: An output differed, the metric that judges is worse than PyTorch's by more than `budget`, or,
                of an inexact format, the outputs are unlike PyTorch's.
        """
        if self.comparison.failure is not None:
            raise self.comparison.failure
        if (metric := judging_metric(task)) is not None:
            prove_metric(
                self.format.path,
                metric,
                pytorch[metric],
                self.comparison.values()[metric],
                higher_is_better=task.metrics()[metric].higher_is_better,
                budget=budget,
            )
        if not self.format.exact:
            self.comparison.likeness.prove(self.format.path)


def make_candidate(format: Format, variant: Variant, stage: Path, subject: Subject, limits: Limits) -> Candidate:
    """Writes a format into `stage` in one way, loads it afresh and proves it at the shapes of the subject's cases.

    Raises:
        ProofError: It cannot be written, loaded or run, a dimension is frozen, or an output differs.
    """
    path = stage / format.path
    with turned_into_proof_error(format.path, f"cannot be exported ({shapes_of(subject.traced)})", _EXPORT_REMEDY):
        details = variant.write(path, subject)
    with turned_into_proof_error(format.path, "cannot be loaded", _EXPORT_REMEDY):
        forward, declared = format.load(path, subject)
    tolerance = limits.of(exact=format.exact, bitwise=format.bitwise)
    tried = prove_cases(format.path, forward, subject.cases, tolerance)
    task = subject.task
    comparison = Comparison(format.path, forward, task.metrics(), tolerance, task.target)
    return Candidate(format, variant, forward, tried, comparison, {**details, **declared})
